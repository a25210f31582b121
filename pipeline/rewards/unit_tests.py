"""Score code by its tests (target.tests, after target.setup): the share that pass, or whether all do.

The code is the last ```python block of an answer, else the whole of it. It runs in a process of its own that can reach
no network, no file and no other process (pipeline.rewards.jail), under limits of time, memory and size; where the
system cannot shut a process in so, nothing is run. Answers can still cheat: code that finds out how it is tested is not
told from code that works.
"""

import json
import os
import secrets
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.code import code_of
from pipeline.config import setting
from pipeline.errors import UserError
from pipeline.files import parsed_lines
from pipeline.lm.settings import ModelRuntime
from pipeline.records import Group, Target, target_of
from pipeline.rewards import jail
from pipeline.rewards.checked import missing
from pipeline.rewards.contract import Desk, Limits, ScoreGroups, Scorer

_START_SECONDS = 10.0  # two interpreters, on a busy machine


@dataclass(frozen=True)
class Settings:
    """What counts, and what the code may use."""

    score: str = setting("all", choices=("all", "share"))
    """all: 1 where every test passes, else 0; share: of the tests that pass."""

    seconds: int = setting(5, low=1, high=600)
    """Of processor time, for code and tests together."""

    memory_mb: int = setting(512, low=64)
    """Of one process's memory, and of all files together a sixteenth."""


def passed(settings: Settings, target: Target, code: str) -> list[bool]:
    """Which tests pass. Raises UserError where this system cannot shut the code in."""
    token = secrets.token_hex(16)
    work = {"token": token, "setup": target.setup, "code": code, "tests": target.tests, "cpu_seconds": settings.seconds,
            "memory_mb": settings.memory_mb, "box_mb": max(4, settings.memory_mb // 16)}
    process = subprocess.Popen([sys.executable, "-I", "-S", jail.__file__], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={}, start_new_session=True)
    try:
        out, said = process.communicate(json.dumps(work).encode(), timeout=settings.seconds + _START_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()  # with it the code's own process ends, and with that one all that it has started
        process.communicate()
        return [False] * len(target.tests)
    if process.returncode == jail.CANNOT:
        raise UserError(f"reward: this system does not let code be shut in ({said.decode().strip()}), so none is run; "
                        "it takes Linux with namespaces: kernel.unprivileged_userns_clone=1, or a container with them")
    lines = parsed_lines(out, token=str, passed=list)
    found: list[bool] = next((line["passed"] for line in lines if line["token"] == token), [])
    return [*found, *[False] * len(target.tests)][: len(target.tests)]


def scorer(settings: Settings, *, model: Path | None = None, runtime: ModelRuntime | None = None,
           desk: Desk) -> ScoreGroups:
    """See Scorer. A prompt without tests scores NaN."""
    def score(target: Target, text: str) -> float:
        found = passed(settings, target, code_of(text))
        return float(all(found)) if settings.score == "all" else sum(found) / len(found)

    def of(group: Group, pool: ThreadPoolExecutor) -> list[Any]:
        target = target_of(group)
        if target is None or not target.tests:
            return [missing(desk, group, k, "the prompt has no target.tests") for k in range(len(group.completions))]
        return [pool.submit(score, target, completion.text) for completion in group.completions]

    def groups_of(groups: Any) -> list[list[float]]:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            waiting = [of(group, pool) for group in groups]
            return [[one if isinstance(one, float) else one.result() for one in row] for row in waiting]

    return groups_of


def check(settings: Settings, limits: Limits) -> list[tuple[str, str]]:
    """Whether this system can shut code in, found out by doing it."""
    try:
        works = passed(Settings(), Target(tests=("assert answer == 42",)), "answer = 42")
    except UserError as error:
        return [("module", problem) for problem in error.problems]
    return [] if works == [True] else [("module", "code that is shut in does not run on this system")]


SCORER = Scorer(Settings, scorer, desk=True, check=check)
