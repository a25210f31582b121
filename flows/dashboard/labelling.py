"""Judging by hand: the answers of two policies side by side, blind, and what the verdicts come to.

    runs/NAME/verdicts/STEP.jsonl    every verdict as it was given, {id, outcome, ours_left, seconds, time}; the
                                     last one of a prompt counts
    artifacts/label/KEY              what "Finish" makes of them: verdicts.jsonl, preferences.jsonl (read it with
                                     data=files), label.json; runs/NAME/labels.json names it, so gc keeps it

Which side is whose, and the order, follow from a hash of run, step and prompt: a reload shows the same.
"""

import hashlib
import json
import math
import shutil
import statistics
import time
from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from flows.dashboard import facts, samples, tables
from flows.dashboard.facts import Row
from flows.dashboard.files import Files, NotHere
from flows.dashboard.written import Refused
from pipeline import files as on_disk
from pipeline import runs, store
from pipeline.columns import LOGP
from pipeline.statistics import wilson

_AHEAD = 10  # pairs sent at once
_SAID = {"left": 1.0, "tie": 0.5, "right": 0.0}  # the outcome, where ours stands on the left


@dataclass(frozen=True)
class _Contest:
    """Two tables of answers to the same prompts. sides: (table, sampling step, the side tables of its scores)."""

    step: Row
    sides: list[tuple[tables.Table, Row, list[tables.Table]]]
    ids: list[str]  # in the order of judging


def pairs(files: Files, name: str, step: str = "") -> Row:
    """The next pairs without a verdict: {id, messages, left, right}, and how far one is."""
    contest = _contest(files, name, step)
    said = _verdicts(files, name, contest)
    waiting = [one for one in contest.ids if one not in said][:_AHEAD]
    found = [_rows(files, side, waiting) for side in contest.sides]
    shown = []
    for one in waiting:
        ours, theirs = (side[one]["completions"][0]["text"] for side in found)
        left, right = (ours, theirs) if _ours_left(name, contest, one) else (theirs, ours)
        shown.append({"id": one, "messages": found[0][one]["messages"], "left": left, "right": right})
    every = [s["name"] for s in facts.steps_of(files, files.run(name)) if s["stage"] == "evaluate" and s["key"]]
    return {"run": name, "step": contest.step["name"], "steps": every, "pairs": shown, "judged": len(said),
            "total": len(contest.ids)}


def keep(files: Files, name: str, body: Row) -> Row:
    """Write one verdict down: {step, id, said: left, right or tie, seconds}; said null takes it back."""
    contest = _contest(files, name, str(body.get("step", "")))
    said, one = body.get("said"), body.get("id")
    if one not in contest.ids or said not in (*_SAID, None):
        raise Refused("expected the id of a pair and left, right, tie or null")
    ours_left = _ours_left(name, contest, one)
    outcome = None if said is None else _SAID[said] if ours_left else 1 - _SAID[said]
    line = {"id": one, "outcome": outcome, "ours_left": ours_left, "seconds": _number(body.get("seconds")),
            "time": round(time.time(), 3)}
    path = files.run_path(name, "verdicts", f"{contest.step['name']}.jsonl")
    path.parent.mkdir(exist_ok=True)
    on_disk.append_line(path, json.dumps(line))
    return {"judged": len(_verdicts(files, name, contest))}


def result(files: Files, name: str, step: str = "") -> Row:
    """The human win rate with its interval, and how often each score, and who decided the evaluation, agrees."""
    contest = _contest(files, name, step)
    said = _verdicts(files, name, contest)
    if not said:
        return {"step": contest.step["name"], "pairs": 0}
    mean = statistics.fmean(said.values())
    low, high = wilson(mean, len(said))
    ours, theirs = (_scores(side, said.keys()) for side in contest.sides)
    agree = {}
    for score in sorted({n for values in ours.values() for n in values}):
        both = {one: ours[one][score] - theirs[one][score] for one in said
                if score in ours.get(one, {}) and score in theirs.get(one, {})}
        agree[score] = _agreement(said, both)
    folder = files.artifact("evaluate", contest.step["key"])
    judged: dict[str, list[float]] = {}
    for row in on_disk.parsed_lines((folder / "outcomes.jsonl").read_bytes(), id=str, outcome=(int, float)):
        judged.setdefault(row["id"], []).append(row["outcome"] - 0.5)
    agree["the evaluation"] = _agreement(said, {one: statistics.fmean(judged[one]) for one in said if one in judged})
    return {"step": contest.step["name"], "pairs": len(said), "win_rate": mean, "low": low, "high": high,
            "ties": sum(v == 0.5 for v in said.values()), "agreement": {k: v for k, v in agree.items() if v["pairs"]}}


def finish(files: Files, name: str, body: Row) -> Row:
    """Make an artifact of the verdicts there are, and name it in the run's folder. Asked again, it is the same one."""
    contest = _contest(files, name, str(body.get("step", "")))
    said, found = _verdicts(files, name, contest), result(files, name, contest.step["name"])
    if not said:
        raise Refused("there is no verdict yet")
    rows = [_rows(files, side, list(said)) for side in contest.sides]
    verdicts = "".join(f"{json.dumps({'id': one, 'outcome': v})}\n" for one, v in sorted(said.items()))
    manifest = files.manifest("evaluate", contest.step["key"]) or {}
    parts: dict[str, Any] = {"version": 1, "settings": {"verdicts": hashlib.sha256(verdicts.encode()).hexdigest()},
                             "inputs": {k: manifest["inputs"][k] for k in ("groups", "baseline")}, "seed": None}
    key = store.fingerprint("label", **parts)
    with store.lock(files.workspace, "label", key, 10):
        if store.find(files.workspace, "label", key) is None:
            out = store.work_path(files.workspace, "label", key) / "out"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            (out / "verdicts.jsonl").write_text(verdicts)
            (out / "preferences.jsonl").write_text("".join(_preference(name, contest, one, said[one], *(
                side[one] for side in rows)) for one in sorted(said) if said[one] != 0.5))
            (out / "label.json").write_text(json.dumps(found, indent=2) + "\n")
            store.commit(files.workspace, "label", key, {
                **parts, "counts": {"pairs": len(said), "human_win_rate": found["win_rate"]}, "dropped": {},
                "run": name, "step": f"label {contest.step['name']}", "iteration": contest.step["iteration"],
                "process_seconds": 0.0, "peak_memory_mb": 0.0, "created": time.time(), "git": "", "versions": {},
                "runtime": {}})
    path = files.run_path(name, "labels.json")
    known = [one for one in files.json(path) or [] if one["key"] != key]
    on_disk.write_atomic(path, json.dumps([*known, {"kind": "label", "key": key, "step": contest.step["name"]}]))
    return {"key": key, "path": str(store.artifact_path(files.workspace, "label", key)), **found}


def _contest(files: Files, name: str, step: str) -> _Contest:
    """The evaluation of that name, or the last one. NotHere where none is done, or it has no two tables of answers."""
    steps = facts.steps_of(files, files.run(name))
    done = [s for s in steps if s["stage"] == "evaluate" and s["key"] and s["state"] in ("done", "cached")
            and step in ("", s["name"])]
    if not done:
        raise NotHere(f"run {name} has no evaluation {step} yet: there are no two policies' answers to judge")
    named, sides = {s["name"]: s for s in steps}, []
    refs = list(dict.fromkeys(ref.partition("/")[0] for ref in done[-1]["inputs"]))
    for ref in (r for r in refs if named[r]["stage"] != "score"):
        table = tables.open_table(files, files.table(named[ref]["stage"], named[ref]["key"], "groups"))
        scored = [r for r in refs if named[r]["stage"] == "score" and ref in (
            s["name"] for s, _ in runs.groups_of(steps, r))]
        beside = [side for r in scored if (side := samples.numbers_of(files, named[r])) is not None]
        sides.append((table, named[ref], beside))
    if len(sides) < 2:
        raise NotHere(f"{done[-1]['name']} compares no two tables of answers")
    common = [set(tables.ids_of(files, table).to_pylist()) for table, _, _ in sides[:2]]
    mark = f"{name}/{done[-1]['key']}/"
    ids = sorted(common[0] & common[1], key=lambda one: hashlib.sha256(f"{mark}{one}".encode()).digest())
    return _Contest(done[-1], sides[:2], ids)


def _ours_left(name: str, contest: _Contest, one: str) -> bool:
    return hashlib.sha256(f"left/{name}/{contest.step['key']}/{one}".encode()).digest()[0] % 2 == 0


def _rows(files: Files, side: tuple[tables.Table, Row, Any], ids: list[str]) -> dict[str, Row]:
    places = tables.find_ids(files, side[0], ids)
    return {row["id"]: row for row in tables.at(side[0], sorted(places.values())).values()}


def _scores(side: tuple[tables.Table, Row, list[tables.Table]], ids: Set[str]) -> dict[str, dict[str, float]]:
    """Prompt's id -> the scores of its first answer."""
    found: dict[str, dict[str, float]] = {}
    for beside in side[2]:
        rows = tables.rows(beside, 0, beside.rows)
        for row in rows:
            if row["k"] == 0 and row["id"] in ids:
                found.setdefault(row["id"], {}).update({k: v for k, v in row.items() if k not in ("id", "k", LOGP)
                                                        and v is not None and math.isfinite(v)})
    return found


def _agreement(said: dict[str, float], other: dict[str, float]) -> Row:
    """Of the pairs that both decide, the share decided alike, with its interval."""
    both = [(said[one] - 0.5) * value > 0 for one, value in other.items() if said[one] != 0.5 and value != 0]
    if not both:
        return {"pairs": 0}
    share = sum(both) / len(both)
    low, high = wilson(share, len(both))
    return {"pairs": len(both), "share": share, "low": low, "high": high}


def _verdicts(files: Files, name: str, contest: _Contest) -> dict[str, float]:
    """Prompt's id -> the outcome for the policy, 1 won, 0.5 tie, 0 lost: the last verdict of each counts."""
    path = files.run_path(name, "verdicts", f"{contest.step['name']}.jsonl")
    lines = on_disk.parsed_lines(path.read_bytes(), id=str) if path.is_file() else []
    last, known = {line["id"]: line.get("outcome") for line in lines}, set(contest.ids)
    return {one: float(v) for one, v in last.items() if isinstance(v, int | float) and one in known}


def _preference(name: str, contest: _Contest, one: str, outcome: float, ours: Row, theirs: Row) -> str:
    """A line that data=files reads as a pair, with where it is from."""
    better, worse = (ours, theirs) if outcome > 0.5 else (theirs, ours)
    messages = [{"role": m["role"], "content": m["content"]} for m in ours["messages"]]
    return json.dumps({"id": one, "prompt": messages, "chosen": better["completions"][0]["text"],
                       "rejected": worse["completions"][0]["text"], "source": f"label/{name}/{contest.step['name']}",
                       "chosen_policy": better["completions"][0]["policy"],
                       "rejected_policy": worse["completions"][0]["policy"]}, ensure_ascii=False) + "\n"


def _number(value: Any) -> float | None:
    return round(float(value), 2) if isinstance(value, int | float) and math.isfinite(value) else None

