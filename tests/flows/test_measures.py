"""Numbers of side tables by arm, iteration and prompt: what a paper's table shows beside win rates."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import measures
from flows.measures import SFT, Measure
from flows.reproduce import Claim, verdict
from pipeline import columns, runs, store

RATIO = Measure("log-ratio", step="pair_logps", table="held_out", column="log_ratio", completion=0)
SCORE = Measure("repeats", step="answer_scores", table="scores", column="reward", times=-1.0, start="baseline_scores")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two runs, of seeds 0 and 1: log-ratios of pairs, scores of the policy's and of the start's answers."""
    for seed in (0, 1):
        steps = [
            step(tmp_path, "pair_logps[1]", 1, seed, "held_out", "log_ratio", {"a#0": [-1.0, 5.0], "a#1": [-3.0, 5.0],
                                                                              "b": [1.0 + seed, 5.0]}),
            step(tmp_path, "answer_scores[1]", 1, seed, "scores", "reward", {"x": [-4.0, -2.0], "y": [-1.0]}),
            step(tmp_path, "baseline_scores", 0, seed, "scores", "reward", {"x": [-9.0], "y": [-7.0]})]
        runs.save(tmp_path, runs.Run(f"r{seed}", {"seed": seed}, [], {}, steps, "done", 0.0))
    return tmp_path


def step(place: Path, name: str, iteration: int, seed: int, table: str, column: str, values: dict) -> dict:
    """An artifact with one side table, and the step of a run that made it."""
    kind, key = ("score" if "scores" in name else "pair_logps"), store.fingerprint(name, 1, {}, {}, seed)
    folder = store.work_path(place, kind, key) / "out" / table
    columns.write_part(folder, 0, (("d", g, [{column: v} for v in row]) for g, row in values.items()))
    store.commit(place, kind, key, {})
    return {"name": name, "stage": kind, "iteration": iteration, "key": key, "state": "done"}


def test_a_prompts_number_is_the_mean_of_its_pairs_chosen_answers(place: Path):
    """a: (-1 - 3) / 2 = -2 in both seeds; b: 1 and 2. The SFT model has 0 of every prompt."""
    found = measures.of_arms(place, {"dpo": ["r0", "r1"]}, RATIO)
    assert [one.outcomes for one in found["dpo"][1]] == [{"a": -2.0, "b": 1.0}, {"a": -2.0, "b": 2.0}]
    assert [one.seed for one in found[SFT][0]] == ["0", "1"]
    assert all(one.outcomes == {"a": 0.0, "b": 0.0} for one in found[SFT][0])
    assert found["dpo"][1][0].origins["value"].startswith("pair_logps/")
    claim = Claim("x", ("dpo", 1), (SFT, 0), "ratio")
    assert verdict(claim, found)[:3] == ["-0.25", "-2 to +1.5", "undecided at this size"]


def test_a_factor_and_a_start_of_its_own(place: Path):
    """Repeats of x: (4 + 2) / 2 = 3 against 9, of y 1 against 7: six fewer each."""
    found = measures.of_arms(place, {"dpo": ["r0"]}, SCORE)
    assert found["dpo"][1][0].outcomes == {"x": 3.0, "y": 1.0} and found[SFT][0][0].outcomes == {"x": 9.0, "y": 7.0}
    assert verdict(Claim("x", (SFT, 0), ("dpo", 1), "repeat"), found) == ["+6", "+6 to +6", "reproduced", "1"]
    assert verdict(Claim("x", (SFT, 0), ("dpo", 2), "repeat"), found)[2] == "not run"
