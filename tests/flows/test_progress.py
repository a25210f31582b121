"""What a run says while it goes on: the running step's line, and a line for each that is finished."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from flows import progress, results, screen
from pipeline import store

TRAINING = {"done": 120, "total": 512, "unit": "steps", "time": 160.0, "began": {"done": 20, "time": 60.0}}


@pytest.mark.parametrize(("width", "expected"), [
    (80, "12/25 train[1]  120/512 steps  1/s  6:32 left  run > 14:10 left"),
    (60, "12/25 train[1]  120/512 steps  6:32 left  run > 14:10 left"),
    (50, "12/25 train[1]  120/512 steps  6:32 left"),
    (26, "12/25 train[1]  6:32 left")])
def test_the_running_step_is_one_line_that_fits(width: int, expected: str):
    """100 steps in 100 s: 1/s. What has no room goes, the rate first."""
    assert progress.running("12/25 train[1]", TRAINING, 160.0, 392.0, (850.0, False), width) == expected


def test_without_a_count_the_time_that_has_passed_is_told():
    assert progress.running("2/4 init", None, 72.0, None, (0.0, True), 80) == "2/4 init  1:12 elapsed"
    waiting = {"done": 0, "total": 0, "unit": "waiting: process 7 has it"}
    assert progress.running("2/4 init", waiting, 5.0, None, (0.0, True), 80) == (
        "2/4 init  waiting: process 7 has it  0:05 elapsed")


def test_a_slow_pace_is_told_by_the_minute():
    state = {**TRAINING, "time": 2060.0}  # 100 steps in 2,000 s
    assert "  3/min  " in progress.running("train", state, 1.0, 9.0, (0.0, True), None)


def artifact(kind: str, counts: dict[str, float], dropped: dict[str, int]) -> store.Artifact:
    return store.Artifact(kind, "k", Path("/nowhere"), {"counts": counts, "dropped": dropped})


def test_the_stage_declares_which_numbers_stand_behind_its_step():
    judged = {"win_rate": 0.771, "win_rate_low": 0.695, "win_rate_high": 0.833, "length_mean": 40.0, "wins": 100}
    assert results.of(artifact("evaluate", judged, {})) == "win rate 77.1% (69.5% to 83.3%), length 40.0"
    assert results.of(artifact("report", {"win_rate": 0.8, "gain": 0.038, "gain_low": -0.003, "gain_high": 0.079}, {})
                      ) == "win rate 80.0%, gain +3.8%-points (-0.3% to +7.9%)"
    assert results.of(artifact("diagnose", {"kl": 8.5, "length_mean": 59.2, "length_drift": 0.84}, {})
                      ) == "KL 8.50 nats an answer, length 59.2 (+84%)"
    assert results.of(artifact("generate", {"tokens_per_second": 5321.0, "truncated_share": 0.02}, {})
                      ) == "5,321 tokens/s, truncated 2.0%"


def test_a_stage_that_declares_none_or_is_gone_shows_its_first_counts():
    assert results.of(artifact("no_such_stage", {"rows": 3, "mean_length": 2.5}, {})) == "rows 3, mean length 2.5"


def test_rows_over_a_limit_that_the_user_has_set_need_no_words():
    counts = {"unread keys a, b": 9, "sft": 20, "pref": 10, "eval_prompts_in_training": 2, "unread: a": 9}
    dropped = {"over data.format.limits.sft": 30280, "same row again": 3}
    assert results.of(artifact("import_data", counts, dropped)) == (
        "sft 20, pref 10, unread keys a, b (in 9 rows), 2 evaluation prompts are in training, too; "
        "left out or cut: same row again 3")


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch):
    """finished(width, cached) -> the lines of a step that has left rows out."""

    def call(width: int, cached: bool) -> list[str]:
        console = Console(width=width, highlight=False, soft_wrap=True, record=True, file=io.StringIO())
        monkeypatch.setattr(screen, "console", console)
        monkeypatch.setattr(screen, "width", lambda: width)
        shown = progress.Screen(["data", "tokens"])
        lost = {"pref_long_prompt": 7, "sft_long_prompt": 119}
        shown.finished("tokens", artifact("tokenize", {"sft": 81, "pref": 1750}, lost), cached, 2.0)
        shown.ended("done")
        return console.export_text().splitlines()

    return call


def test_a_finished_step_says_the_same_whether_it_was_computed_or_cached(finished):
    assert finished(140, False) == ["  done     0/2 tokens      2.0 s  sft 81, pref 1,750; left out or cut: "
                                    "sft long prompt 119, pref long prompt 7"]
    assert finished(80, True) == ["  cached   0/2 tokens      2.0 s",
                                  "          sft 81, pref 1,750; left out or cut: sft long prompt 119, pref long",
                                  "          prompt 7"]
