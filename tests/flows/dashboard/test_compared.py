"""Runs side by side: what an experiment is called, the leaderboard, the test of two arms, curves with their gaps."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from flows.dashboard import compared, curves
from flows.dashboard.files import Files, NotHere
from tests.flows.dashboard import world


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    place = tmp_path_factory.mktemp("compared")
    for beta, seed in ((0.1, 0), (0.1, 1), (0.5, 0)):
        world.whole_run(place, f"b{beta}-{seed}", seed=seed, number=4, beta=beta)
    return Files(place)


NAMES = ["b0.1-0", "b0.1-1", "b0.5-0"]


def test_an_experiment_is_called_by_what_differs(files: Files):
    found = {run["name"]: run for run in compared.compare(files, NAMES)["runs"]}
    assert [found[name]["settings"] for name in NAMES] == [
        {"objective.beta": "0.1"}, {"objective.beta": "0.1"}, {"objective.beta": "0.5"}]
    assert found["b0.1-0"]["experiment"] == found["b0.1-1"]["experiment"] != found["b0.5-0"]["experiment"]


def test_the_leaderboard(files: Files):
    """By hand: arm A won 8 (seed 0) and 9 (seed 1: 0.81) of 10 prompts in iteration 2, arm B 8. 210 steps at 901 and
    more tokens a second are reported by no step here that tells its pace, so tokens are unknown."""
    found = compared.compare(files, NAMES)
    assert [(row["arm"], row["iteration"], round(row["win_rate"]["value"], 2)) for row in found["leaders"]] == [
        ("A", 2, 0.85), ("B", 2, 0.8)]
    first = found["leaders"][0]
    assert first["runs"] == NAMES[:2] and first["win_rate"]["seeds"] == 2 and first["tokens"] is None
    assert first["win_rate"]["low"] < 0.85 < first["win_rate"]["high"]
    assert first["numbers"]["length"] == 50.0 and first["numbers"]["kl"] == 5.0


def test_hours_are_those_of_the_devices_a_step_held(files: Files):
    """These artifacts do not say what they held: one process each, of 1.5 s for the first, a second more for each."""
    run = next(r for r in compared.compare(files, ["b0.1-0"])["runs"])
    assert run["hours"].keys() == {"process"} and 0.05 < run["hours"]["process"] < 0.15


def test_two_arms_are_tested_on_what_they_share(files: Files):
    """Seed 0 is all they share: there both won 8 of 10."""
    found = compared.test(files, NAMES, "A", "B")
    assert (found["iterations"], found["mean"], found["prompts"], found["seeds"]) == ([2, 2], 0.0, 10, ("0",))
    with pytest.raises(NotHere, match="no arm A or C"):
        compared.test(files, NAMES, "A", "C")


def test_tokens_and_work_add_up_without_the_pauses(tmp_path: Path):
    """100 tokens a second for 2 s a step: 10 steps are 2,000 tokens and 20 s; then 50 a second for 4 s: 2,000 more."""
    run = world.Maker(tmp_path, "paced")
    run.step("train[1]", "train_preference", {}, {"steps": 20})
    run.save()
    run.report("train[1]", 10, loss=1.0, tokens_per_second=100.0, seconds_per_step=2.0)
    run.report("train[1]", 20, loss=0.5, tokens_per_second=50.0, seconds_per_step=4.0)
    [curve] = curves.metrics(Files(tmp_path), "paced")["steps"]
    assert (curve["worked"], curve["tokens"]) == ([20.0, 60.0], [2000.0, 4000.0])
    assert curves.tokens_trained(Files(tmp_path), "paced") == 4000.0


def test_thinned_curves_keep_lowest_and_highest_and_what_is_not_finite(tmp_path: Path):
    """1,201 lines become points of three; line 5 is NaN, so the second point is a gap, and the first has 1 to 3."""
    run = world.Maker(tmp_path, "long")
    run.step("train[1]", "train_preference", {}, {"steps": 1})
    run.save()
    lines = [{"step": "train[1]", "at": at, "time": float(at), "loss": math.nan if at == 5 else float(at)}
             for at in range(1, 1202)]
    (run.folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    [curve] = curves.metrics(Files(tmp_path), "long")["steps"]
    assert (curve["averaged"], curve["values"]["loss"][:3]) == (3, [2.0, None, 8.0])
    assert (curve["low"]["loss"][0], curve["high"]["loss"][0], curve["not_finite"]) == (1.0, 3.0, {"loss": [1]})
