"""Score code by the tests of all answers to its prompt (DSTC, Liu et al. 2024; CodeT, Chen et al. 2022).

Every answer brings code and tests of its own (pipeline.code: the `assert` statements outside of functions count as one
test). Every code is run against every test in a process of its own, shut in as pipeline.rewards.unit_tests does. The
score is the share of the tests that an answer's code passes; its `_passed` is the sum of 2^j over the samples j whose
test it passes, which selection=minimax reads. No right answer is needed, and none is looked at.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipeline.code import code_and_tests
from pipeline.config import setting
from pipeline.errors import UserError
from pipeline.lm.settings import ModelRuntime
from pipeline.records import Group, Target
from pipeline.rewards import unit_tests
from pipeline.rewards.checked import missing
from pipeline.rewards.contract import Desk, Score, ScoreGroups, Scorer

NO_TESTS = "no answer to the prompt ends with a test"
_MOST = 52  # samples whose numbers a float holds exactly


@dataclass(frozen=True)
class Settings:
    """What the code may use."""

    seconds: int = setting(5, low=1, high=600)
    """Of processor time, for a code with one test."""

    memory_mb: int = setting(512, low=64)
    """Of one process's memory, and of all files together a sixteenth."""


def scorer(settings: Settings, *, model: Path | None = None, runtime: ModelRuntime | None = None,
           desk: Desk) -> ScoreGroups:
    """See Scorer. Answers to a prompt none of whose answers has a test score NaN."""
    limits = unit_tests.Settings(seconds=settings.seconds, memory_mb=settings.memory_mb)

    def score(group: Group, pool: ThreadPoolExecutor) -> list[Score]:
        if any(c.sample >= _MOST for c in group.completions):
            raise UserError(f"reward: cross_tests tells {_MOST} samples of a prompt apart; lower sampling.n")
        parts = [code_and_tests(completion.text) for completion in group.completions]
        tests = [(c.sample, test) for c, (_, test) in zip(group.completions, parts, strict=True) if test]
        if not tests:
            return [{"": missing(desk, group, k, NO_TESTS), "_passed": math.nan} for k in range(len(parts))]
        passed = [[pool.submit(unit_tests.passed, limits, Target(tests=(test,)), code) for _, test in tests]
                  for code, _ in parts]
        rows = [{j: one.result() == [True] for (j, _), one in zip(tests, row, strict=True)} for row in passed]
        return [{"": sum(row.values()) / len(row), "_passed": float(sum(2 ** j for j, fine in row.items() if fine))}
                for row in rows]

    def score_all(groups: Sequence[Group]) -> list[list[Score]]:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return [score(group, pool) for group in groups]

    return score_all


SCORER = Scorer(Settings, scorer, desk=True, suffixes=("", "_passed"), relative=True,
                check=lambda settings, limits: unit_tests.check(unit_tests.Settings(), limits))
