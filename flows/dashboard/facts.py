"""What a run's record and its artifacts say about its steps and iterations. Every number names the step it is from."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from flows import rewarded
from flows.dashboard.files import Files
from flows.inspection import FREE, SEEDS, compared
from pipeline import files, report, runs

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A number of the iterations table: the last (or the sum) of `field` over the iteration's steps of a kind."""

    name: str
    label: str
    kind: str
    field: str
    form: str  # how the page shows it: "int", "num", "rate", "gain", "len", "speed"
    purpose: str = ""  # "train" or "judge": only the sampling done for that
    total: bool = False
    low: str = ""  # the fields of its interval
    high: str = ""
    p_value: str = ""  # the field of the test that it is 0
    hint: str = ""  # what it says, for those who meet it the first time


HINTS = {
    "prompts": "Prompts sampled for training.",
    "samples": "Answers drawn for training, several a prompt.",
    "reward": "Mean learned reward of the samples trained on.",
    "best": "Mean reward of the best sample of each prompt: how far choosing alone gets.",
    "margin": "Mean reward of the chosen less the rejected.",
    "win_rate": "Share of prompts whose answer beats the baseline's by the score that judges; ties half.",
    "gain": "Win rate less that of the iteration before, on the same prompts, in points. An interval clear "
            "of 0 is a real change.",
    "length_controlled": "Win rate at equal length: far below the win rate, and the gain is length.",
    "win_rate_reward": "Win rate by the reward that was optimised. Rising while the win rate falls: the reward is "
                       "gamed.",
    "length": "Mean tokens of the judged answers.",
    "truncated": "Share of judged answers cut at the token limit.",
    "kl": "Nats an answer between policy and reference: how far it has moved.",
    "reward_accuracy": "Share of pairs of new samples that the reward model orders as the judge does. At 50 % it "
                       "guesses.",
    "tokens_per_second": "Of the sampling engine.",
    "kept": "Groups trained on.",
}
COLUMNS = tuple(replace(column, hint=HINTS[column.name]) for column in (
    Column("prompts", "Prompts", "generate", "prompts", "int", "train", total=True),
    Column("samples", "Samples", "generate", "completions", "int", "train", total=True),
    Column("kept", "Groups kept", "build_groups", "kept", "int", total=True),
    Column("reward", "Reward", "score", "score_mean", "num", "train"),
    Column("best", "Best of N", "score", "best_of_n_mean", "num", "train"),
    Column("margin", "Margin", "build_groups", "margin_mean", "num"),
    Column("win_rate", "Win rate", "evaluate", "win_rate", "rate", low="win_rate_low", high="win_rate_high"),
    Column("gain", "Gain, points", "report", "gain", "gain", low="gain_low", high="gain_high", p_value="gain_p_value"),
    Column("length_controlled", "Length-controlled", "evaluate", "length_controlled_win_rate", "rate",
           low="length_controlled_low", high="length_controlled_high"),
    Column("win_rate_reward", "By learned reward", "evaluate", "win_rate_reward", "rate"),
    Column("length", "Length", "evaluate", "length_mean", "len"),
    Column("truncated", "Truncated", "evaluate", "truncated_share", "rate"),
    Column("kl", "KL", "diagnose", "kl", "num"),
    Column("reward_accuracy", "Reward's accuracy", "diagnose", "reward_model_accuracy", "rate"),
    Column("tokens_per_second", "Tokens/s", "generate", "tokens_per_second", "speed", "train")))


def steps_of(files: Files, record: Row) -> list[Row]:
    """The run's steps as its record has them, each with what its artifact's manifest says."""
    going_on = live_state(files, record) == runs.RUNNING
    found = []
    for step in record["steps"]:
        facts = files.manifest(step["stage"], step.get("key"))
        state = step["state"]
        if state == runs.RUNNING and not going_on:
            state = runs.INTERRUPTED
        elif state in ("done", "cached") and facts is None:
            state = "missing"
        shown = (facts or {}) if state in ("done", "cached") else {}
        elsewhere = bool(shown) and (shown.get("run"), shown.get("step")) != (record["name"], step["name"])
        found.append({"name": step["name"], "base": step["name"].partition("[")[0], "stage": step["stage"],
                      "iteration": step["iteration"], "state": state, "key": step.get("key"),
                      "inputs": step.get("inputs", []), "seconds": shown.get("process_seconds", step.get("seconds")),
                      "memory_mb": shown.get("peak_memory_mb"),
                      "made_by": {"run": shown.get("run"), "step": shown.get("step")} if elsewhere else None,
                      "counts": numbers(shown.get("counts", {})), "dropped": numbers(shown.get("dropped", {})),
                      "level": level(shown)})
    return found


def numbers(values: Any) -> dict[str, float]:
    """The entries of a mapping that are numbers."""
    items = values.items() if isinstance(values, dict) else ()
    return {str(k): v for k, v in items if isinstance(v, (int, float)) and not isinstance(v, bool)}


def level(manifest: Row) -> float | None:
    """The confidence level of an artifact's intervals, in (0, 1); None where its stage states none."""
    settings = manifest.get("settings")
    found = settings.get("confidence") if isinstance(settings, dict) else None
    return found if isinstance(found, float) else None


def live_state(files: Files, record: Row) -> str:
    """The recorded outcome, or "interrupted" for one that says running while nobody drives it."""
    outcome = str(record.get("outcome", ""))
    return runs.INTERRUPTED if outcome == runs.RUNNING and not files.driven(record["name"]) else outcome


def purposes(steps: list[Row]) -> dict[str, set[str]]:
    """Sampling step -> what it was done for: "train" where groups are built from it, "judge" where it is evaluated."""
    reads = {s["name"]: (s["stage"], [ref.partition("/")[0] for ref in s["inputs"]]) for s in steps}
    found: dict[str, set[str]] = {}
    for purpose, kind in (("train", "build_groups"), ("judge", "evaluate")):
        for name in report.sampled_for(kind, reads):
            found.setdefault(name, set()).add(purpose)
    return found


def upstream(steps: list[Row], name: str) -> Iterator[Row]:
    """The step and every one it was made from, nearest first, each once."""
    named, waiting, seen = {s["name"]: s for s in steps}, [name], set[str]()
    while waiting:
        current = waiting.pop(0)
        if current in named and current not in seen:
            seen.add(current)
            yield named[current]
            waiting += [ref.partition("/")[0] for ref in named[current]["inputs"]]


def columns(config: Row) -> list[Column]:
    """COLUMNS with the win rate by the score that this run optimises."""
    label = "By learned reward" if rewarded.heading(config) == "learned" else "By the reward"
    count = rewarded.count_of(config)
    return [replace(c, field=count, label=label) if c.name == "win_rate_reward" else c for c in COLUMNS]


def iterations(steps: list[Row], config: Row) -> list[Row]:
    """One row per iteration: the cells of `columns` that have a number, rows left out by reason, time and memory."""
    serves, known = purposes(steps), columns(config)
    rows = []
    for number in sorted({s["iteration"] for s in steps}):
        own = [s for s in steps if s["iteration"] == number]
        cells = {c.name: cell for c in known if (cell := _cell(c, own, serves)) is not None}
        judging = {s["name"] for s in own if s["stage"] == "evaluate" or serves.get(s["name"]) == {"judge"}}
        dropped: dict[str, Row] = {}
        for step in own:
            for reason, n in (step["dropped"] if step["name"] not in judging else {}).items():
                entry = dropped.setdefault(reason, {"value": 0, "step": step["name"]})
                entry["value"] += n
        rows.append({"iteration": number, "cells": cells, "dropped": dropped,
                     "seconds": sum(s["seconds"] or 0 for s in own),
                     "memory_mb": max(s["memory_mb"] or 0 for s in own)})
    return rows


def _cell(column: Column, steps: list[Row], serves: dict[str, set[str]]) -> Row | None:
    having = [s for s in steps if s["stage"] == column.kind and column.field in s["counts"]
              and (not column.purpose or column.purpose in serves.get(s["name"], set()))]
    if not having:
        return None
    last = having[-1]
    value = sum(s["counts"][column.field] for s in having) if column.total else last["counts"][column.field]
    cell = {"value": value, "step": last["name"], "field": column.field}
    if column.low in last["counts"] and column.high in last["counts"]:
        cell |= {"low": last["counts"][column.low], "high": last["counts"][column.high], "level": last["level"]}
    if column.p_value in last["counts"]:
        cell["p_value"] = last["counts"][column.p_value]
    return cell


def about(record: Row) -> Row:
    """What a run is, in a few words: recipe, model, data, seed, and the objective where one is trained with."""
    config = record["config"]
    trains = any(s["stage"] == "train_preference" for s in record["steps"])
    choices = config.get("choices") or {}
    model, data = config.get("model") or {}, config.get("data") or {}
    arch = model.get("arch") or {}
    made = f"{arch.get('layers')} × {arch.get('hidden_size')}" if arch else ""
    root = str(data.get("root") or "").removeprefix("builtin:").rstrip("/")
    return {"recipe": choices.get("recipe", ""),
            "model": str(model.get("path") or "").rstrip("/").rpartition("/")[2] or choices.get("model") or made,
            "data": choices.get("data") or root.rpartition("/")[2],
            "objective": str((config.get("objective") or {}).get("module", "")).rpartition(".")[2] if trains else "",
            "seed": config.get("seed"), "iterations": config.get("iterations")}


def experiment(config: Row) -> str:
    """The same for runs that differ in nothing but the seed: their numbers belong in one band."""
    return hashlib.sha256(files.canonical(compared(config, (*FREE, *SEEDS))).encode()).hexdigest()[:12]
