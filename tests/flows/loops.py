"""A recipe's real stages one after the other in this process, without processes, kills and Prefect.

Those are tested by tests/flows/test_loop.py; a process for each step of fifty loops would mostly import torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from flows import step as launch
from flows.compose import compose
from pipeline import files, plan, store, worker


def in_this_process(place, item, done, work, environment, watch) -> int:
    """As launch._run_worker: the same spec, the same worker, without a process of its own."""
    spec = launch.spec(place, item, done, work)
    files.write_atomic(work / "step.json", json.dumps(spec))
    argv, sys.argv = sys.argv, ["worker", str(work / "step.json")]
    try:
        return worker.main()
    finally:
        sys.argv = argv


def leading_to(last: str, steps: list[plan.Step]) -> list[plan.Step]:
    """The step and everything it takes something from: judging the result is the same for every objective."""
    wanted = {last}
    for step in reversed(steps):
        if step.name in wanted:
            wanted |= {ref.step for refs in step.inputs.values() for ref in refs}
    return [step for step in steps if step.name in wanted]


def run(words: list[str], workspace: Path, name: str, last: str) -> dict[str, store.Artifact]:
    """Run a recipe, words of `align run`, as far as the step `last` -> the artifact of every step."""
    composed = compose([*words, f"workspace={workspace}", f"run={name}"])
    assert composed.problems == []
    place = launch.Launch(workspace, name, 5.0, 0.0)
    place.folder.mkdir(parents=True, exist_ok=True)
    done: dict[str, store.Artifact] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_run_worker", in_this_process)
        for step in leading_to(last, plan.expand(composed.config)):
            done[step.name], _ = launch.ensure(place, plan.look_up(workspace, step, done), done, {}, lambda *_: None)
    return done
