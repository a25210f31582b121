"""How often a step is tried, by hand."""

from __future__ import annotations

import pytest

from flows import attempts
from flows.failures import StepFailed
from flows.settings import Hardware
from pipeline.config import problems_of


def failing(*codes: int):
    """An attempt that fails with each of these codes in turn, then gives "made"."""
    left = list(codes)

    def attempt() -> str:
        if left:
            raise StepFailed("train[1]", left.pop(0), ["last words"])
        return "made"

    return attempt


@pytest.mark.parametrize(("codes", "retries", "lost", "said"), [
    ((), 0, False, []),
    ((137,), 1, False, ["train[1] failed: it was killed, most often because memory ran out: lower "
                        "hardware.training.tokens_per_batch"]),
    ((1, 124), 2, False, ["train[1] failed: last words",
                          "train[1] failed: it ran longer than hardware.timeout_minutes (or hardware.stages) allows"]),
    ((1,), 0, True, []),  # the engine was lost in mid-step: once more in any case, and nothing is said twice
    ((1, 1), 1, True, ["train[1] failed: last words"]),
])
def test_it_is_tried_again_as_often_as_was_said(codes, retries, lost, said):
    told = list[str]()
    assert attempts.tried(failing(*codes), retries, lambda: lost, told.append) == "made"
    assert told == said


@pytest.mark.parametrize(("codes", "retries"), [((1,), 0), ((1, 1), 1), ((143,), 5), ((130,), 5)])
def test_the_last_failure_counts_and_one_that_was_stopped_stays_so(codes, retries):
    with pytest.raises(StepFailed):
        attempts.tried(failing(*codes), retries, lambda: False, lambda why: None)


def test_a_kind_of_stage_may_differ():
    hardware = {"timeout_minutes": 2.0, "retries": 1, "stages": {"sft": {"retries": 3, "timeout_minutes": None},
                                                                 "score": {"timeout_minutes": 0.5, "retries": None}}}
    assert attempts.of(hardware, "sft") == (120.0, 3) and attempts.of(hardware, "score") == (30.0, 1)
    assert attempts.of(hardware, "report") == (120.0, 1)
    assert attempts.of({"timeout_minutes": 2.0}, "sft") == (120.0, 0), "a record of older code"


def test_a_stage_that_there_is_not_is_named():
    assert problems_of(Hardware, {"training": {}, "stages": {"scores": {"retries": 1}, "sft": {}}}, "hardware") == [
            "hardware.stages.scores: no such stage (did you mean score?)"]
    assert problems_of(Hardware, {"training": {}, "stages": {"sft": {"retries": -1}}}, "hardware") == [
        "hardware.stages.sft.retries: -1 is out of range, expected 0 <= x"]
