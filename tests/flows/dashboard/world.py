"""Workspaces made for tests with the project's own writers: the store, the tables, the run records, the reporter."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import columns, runs, store, tables
from pipeline.records import Completion, Group, Message
from pipeline.stage import Reporter

# What a model may write to take over the page, a terminal, or the reading direction.
HOSTILE = (
    "<script>window.hacked = 1</script>",
    '<img src=x onerror="window.hacked = 2"><svg onload="window.hacked = 3">',
    "[click me](javascript:window.hacked=4) **bold** <b>not bold</b>",
    "before \x1b[31mred\x1b[0m after \x07 bell",
    "user\u202ecod.exe\u2066 and\u200b hidden \u2069 text",
    "</div></section></main><h1>Broken out</h1>",
    '"; window.hacked = 5; //',
    "{{constructor.constructor('window.hacked=6')()}}",
)


LEVEL = 0.9  # of the intervals: not the default, so that a page that writes 95 % is found out


def answer(sample: int, text: str, reward: float, **more: Any) -> Completion:
    ids = tuple(range(10, 10 + len(text.split())))
    return Completion(text=text, token_ids=ids, scores={"reward": reward, "gold": 2 * reward}, sample=sample,
                      temperature=0.7, **more)


def prompts(number: int, iteration: int, texts: tuple[str, ...] = ()) -> list[Group]:
    """`number` prompts with four scored answers each; the first ones say `texts`, the others something harmless."""
    made = []
    for i in range(number):
        say = texts[i] if i < len(texts) else f"Plain answer {i}: boil the water, then add the rice."
        answers = tuple(answer(k, f"{say} Version {k}." if k else say, 0.1 * k - 0.001 * i) for k in range(4))
        made.append(Group(f"p{i:06d}", (Message("user", f"Question {i}: how to cook rice number {i}?"),), answers,
                          dataset="test", iteration=iteration))
    return made


def paired(groups: list[Group]) -> list[Group]:
    """Best and worst of each group, as the selection would build them."""
    return [Group(g.id, g.messages, (g.completions[3], g.completions[0]), dataset=g.dataset, iteration=g.iteration)
            for g in groups]


def bare(groups: list[Group]) -> list[Group]:
    """The same answers as they are sampled, without scores."""
    return [replace(g, completions=tuple(replace(c, scores={}) for c in g.completions)) for g in groups]


def _write_scores(folder: Path, digest: str, groups: list[Group]) -> None:
    columns.write_part(folder, 0, ((digest, g.id, [c.scores for c in g.completions]) for g in groups))


@dataclass
class Maker:
    """One run, step by step."""

    workspace: Path
    name: str
    seed: int = 0
    objective: str = "dpo"
    beta: float | None = None  # typed, where it is one

    def __post_init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    @property
    def folder(self) -> Path:
        return runs.folder(self.workspace, self.name)

    def step(self, name: str, stage: str, inputs: dict[str, str], counts: dict[str, float] | None = None,
             groups: list[Group] | None = None, document: dict[str, Any] | None = None, state: str = "done",
             dropped: dict[str, int] | None = None, part: str = "groups", files: list[str] | None = None,
             document_name: str = "evaluation.json") -> None:
        """Commit an artifact as a stage would, or take the one that is there; note it in the run."""
        iteration = int(name.partition("[")[2].rstrip("]") or 0)
        digests = {i: [self._artifact(ref).digest(ref.partition("/")[2])] for i, ref in inputs.items()}
        digests |= {"files": files} if files else {}
        settings = {"score": "gold"}
        if stage == "train_preference":
            settings = {"objective": self.objective, "beta": self.beta}
        settings |= {"confidence": LEVEL} if stage in ("evaluate", "report") else {}
        parts = {"version": 1, "settings": settings, "inputs": digests, "seed": self.seed if iteration else None}
        key = store.fingerprint(stage, **parts)
        reused = store.find(self.workspace, stage, key) is not None
        if not reused:
            out = store.work_path(self.workspace, stage, key) / "out"
            out.mkdir(parents=True)
            if groups is not None and stage == "score":
                _write_scores(out / "scores", digests["groups"][0], groups)
            elif groups is not None:
                tables.write(out / part, groups)
            if stage == "evaluate":  # of ten prompts, one outcome each
                rows = [{"id": f"p{i}", "outcome": float(i < 10 * counts["win_rate"])} for i in range(10)]
                (out / "outcomes.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            (out / (document_name if document else "note.txt")).write_text(json.dumps(document or {"n": name}))
            store.commit(self.workspace, stage, key, {
                **parts, "counts": counts or {}, "dropped": dropped or {}, "step": name, "iteration": iteration,
                "run": self.name, "process_seconds": 1.5 + len(self.steps), "peak_memory_mb": 300.0 + len(self.steps),
                "created": time.time(), "git": "0" * 12, "versions": {"python": "3.11"}, "runtime": {}})
        self.steps.append({"name": name, "stage": stage, "iteration": iteration, "key": key, "seconds": 1.5,
                           "inputs": list(inputs.values()), "state": "cached" if reused else state})

    def waiting(self, name: str, stage: str, state: str = "waiting", inputs: tuple[str, ...] = ()) -> None:
        iteration = int(name.partition("[")[2].rstrip("]") or 0)
        self.steps.append({"name": name, "stage": stage, "iteration": iteration, "key": None, "inputs": list(inputs),
                           "state": state})

    def _artifact(self, ref: str) -> store.Artifact:
        step = next(s for s in self.steps if s["name"] == ref.partition("/")[0])
        found = store.find(self.workspace, step["stage"], step["key"])
        assert found is not None
        return found

    def report(self, step: str, at: int, **values: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        Reporter(self.name, step, self.folder / "metrics.jsonl", self.folder / "progress.json").metric(at, **values)

    def save(self, outcome: str = runs.DONE) -> None:
        config = {
            "run": self.name, "seed": self.seed, "iterations": 2, "workspace": str(self.workspace), "stage": {},
            "choices": {"recipe": "pco"}, "model": {"path": "/models/tiny"}, "data": {"root": "builtin:minifarm"},
            "objective": {"module": f"pipeline.objectives.{self.objective}",
                          **({} if self.beta is None else {"beta": self.beta})},
        }
        typed = ["recipe=pco", f"objective={self.objective}", *(
            [] if self.beta is None else [f"objective.beta={self.beta}"])]
        runs.save(self.workspace, runs.Run(self.name, config, typed, {}, self.steps, outcome, time.time()))


def evaluation(rate: float) -> dict[str, Any]:
    """What the page reads of evaluation.json: a large category and a small one."""
    return {"score": "gold", "confidence": LEVEL, "categories": {
        "baking": {"prompts": 3, "win_rate": rate - 0.2, "low": 0.2, "high": 0.9},
        "cooking <b>rice</b>": {"prompts": 9, "win_rate": rate + 0.05, "low": rate - 0.1, "high": rate + 0.15}}}


def gate(iteration: int, rate: float) -> dict[str, Any]:
    """gate.json as the stage writes it: the first iteration passes with a doubt, the second is stopped."""
    standing = {"win_rate": rate, "judged": 5.0, "learned": 0.4, "tokens": 40.0 + 5 * iteration}
    stopped = iteration > 1
    doubt = "cannot decide whether the win rate fell while the learned reward rose: no finite learned reward"
    return {"schema": 2, "iteration": iteration, "decision": "stop" if stopped else "pass", "goes_on_from": 1,
            "undecided": [] if stopped else [doubt],
            "reasons": ["gold fell while the learned reward rose"] if stopped else [], "compared_with": iteration - 1,
            "rules": {"win_rate_fall": 0.0, "length_growth": 0.5}, "now": standing,
            "before": {**standing, "win_rate": 0.5, "learned": None}}


def diagnostics(iteration: int) -> dict[str, Any]:
    """diagnostics.json as the stage writes it, an absent section included."""
    offsets = [{"offset": o, "pairs": 9, "chosen": -1 - 0.1 * iteration * (o >= 0), "rejected": -1 - 0.3 * (o >= 0),
                "chosen_reference": -1.0, "rejected_reference": -1.0} for o in range(-4, 5)]
    pairs = {"pairs": 9, "chosen_log_ratio": -0.5, "rejected_log_ratio": -2.0 * iteration,
             "margin": 2.0 * iteration - 0.5, "ranking_accuracy": 0.6, "implicit_accuracy": 0.7}
    answers = {"distinct_1": 0.1, "distinct_2": 0.3, "distinct_3": 0.5, "repeat_3gram": 4.0 * iteration,
               "repeat_3gram_in_prompt": 1.0, "repeat_3gram_in_answer": 3.0}
    return {"schema": 1, "kl": {"per_answer": 2.5 * iteration, "per_token": 0.06}, "held_out_pairs": pairs,
            "trained_pairs": None, "token_curve": {"held_out_pairs": {"by_offset": offsets}, "trained_pairs": None},
            "answers": answers, "baseline": answers,
            "negatives": {"candidates": 8.0, "kernel_entropy": 1.0 / iteration},
            "signal": {"prompts": 40, "samples": 160, "kept": 37, "lost_same_score": 3, "lost_other": 0,
                       "duplicate_samples": 4, "truncated_samples": 0, "unscored_samples": 0},
            "reward_model": {"pairs": 100, "accuracy": 0.65}}


def whole_run(workspace: Path, name: str, seed: int = 0, objective: str = "dpo", number: int = 40,
              texts: tuple[str, ...] = HOSTILE, beta: float | None = None) -> Maker:
    """Two iterations with everything a page can show: samples, pairs, drops, curves, evaluations, a gate."""
    run = Maker(workspace, name, seed, objective, beta)
    run.step("data", "import_data", {}, {"sft": 3}, files=["sft.jsonl:" + "ab" * 32])
    run.step("sft", "sft", {"data": "data"}, {"steps": 30})
    run.step("baseline", "generate", {"model": "sft", "prompts": "data"}, {"prompts": 12}, bare(prompts(12, 0)))
    run.step("baseline_scores", "score", {"groups": "baseline/groups"}, {"score_mean": 0.1}, prompts(12, 0))
    for i in (1, 2):
        sampled = prompts(number, i, texts)
        run.step(f"generate[{i}]", "generate", {"model": "sft" if i == 1 else "train[1]"}, {
            "prompts": number, "completions": 4 * number, "tokens_per_second": 1234.5}, bare(sampled))
        run.step(f"score[{i}]", "score", {"groups": f"generate[{i}]/groups"}, {
            "score_mean": 0.15 * i, "best_of_n_mean": 0.3 * i}, sampled)
        run.step(f"pairs[{i}]", "build_groups", {
            "groups": f"generate[{i}]/groups", "scores": f"score[{i}]/scores"}, {
            "kept": number - 3, "read": number, "margin_mean": 0.3}, paired(sampled)[3:], dropped={"all_tied": 3})
        run.step(f"train[{i}]", "train_preference", {"groups": f"pairs[{i}]/groups"}, {"steps": 20})
        for at in range(10, 210, 10):
            run.report(f"train[{i}]", at, loss=1 / at, chosen_logps=-20 - at / 50, rejected_logps=-22 - at / 20,
                       lr=1e-4, tokens_per_second=900 + at, flop_utilisation=0.3, peak_memory_gb=5.0)
        run.step(f"answers[{i}]", "generate", {"model": f"train[{i}]", "prompts": "data"}, {"prompts": 12},
                 bare(prompts(12, i)))
        run.step(f"answer_scores[{i}]", "score", {"groups": f"answers[{i}]/groups"}, {"score_mean": 0.2},
                 prompts(12, i))
        rate = 0.6 + 0.1 * i + 0.01 * seed
        run.step(f"evaluate[{i}]", "evaluate", {"groups": f"answers[{i}]/groups",
                 "scores": f"answer_scores[{i}]/scores", "baseline": "baseline/groups",
                 "baseline_scores": "baseline_scores/scores"}, {"win_rate": rate, "win_rate_low": rate - 0.05,
                 "win_rate_high": rate + 0.05, "win_rate_reward": rate + 0.1, "length_mean": 40.0 + 5 * i,
                 "truncated_share": 0.0, "baseline_length_mean": 31.0, "length_controlled_win_rate": rate - 0.08,
                 "length_controlled_low": rate - 0.15, "length_controlled_high": rate - 0.02},
                 document=evaluation(rate))
        gained = {"gain": 0.1, "gain_low": 0.012, "gain_high": 0.188, "gain_p_value": 0.0312} if i > 1 else {}
        run.step(f"report[{i}]", "report", {"evaluations": f"evaluate[{i}]"}, {"evaluations": i, **gained})
        run.step(f"diagnose[{i}]", "diagnose", {"model": f"train[{i}]"}, {"kl": 2.5 * i}, document=diagnostics(i),
                 document_name="diagnostics.json")
        run.step(f"gate[{i}]", "gate", {"evaluation": f"evaluate[{i}]"}, {"passed": 2.0 - i}, document=gate(i, rate),
                 document_name="gate.json")
    run.save()
    return run


def imported_run(workspace: Path, name: str) -> Maker:
    """A run that has imported rows of its own, encoded them, and got new prompts since."""
    run = Maker(workspace, name)
    counts = {"sft": 0, "pref": 40, "unlabeled": 0, "eval": 0, "rows": 43, "read as pairs": 43, "unread: source": 43}
    run.step("data", "import_data", {}, counts, dropped={"the answer is empty": 3}, files=["a.jsonl:" + "ab" * 32])
    run.step("tokens", "tokenize", {"data": "data"}, {"pref": 40, "sft": 0}, paired(prompts(40, 0)), part="pref",
             dropped={"pref_long_prompt": 2})
    run.step("new_prompts[3]", "import_prompts", {}, {"unlabeled": 5, "rows": 6, "read as prompts": 6})
    run.waiting("new_tokens[3]", "tokenize")
    run.save()
    return run
