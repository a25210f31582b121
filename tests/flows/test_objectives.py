"""`align run recipe=iterative_dpo objective=<any>` on a smaller built-in world, for every objective there is.

The recipe up to the second iteration's policy, with real stages, real vLLM (the test run's one server) and a learned
reward model; only training is short. The stages run one after the other in this process, because fifty times seven
processes would spend half an hour importing torch; tests/flows/test_loop.py runs them as processes.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from flows import launch
from flows.compose import CONF, compose
from pipeline import plan, store, tables, worker
from pipeline.build import declared, load_part
from pipeline.records import UserError

pytestmark = pytest.mark.slow
OBJECTIVES = sorted(path.stem for path in (CONF / "objective").glob("*.yaml"))
# Groups of pairs cannot give what these compare: the plan says so by name. HyPO is given what it needs below.
REFUSED = {
    "srpo": "objective srpo takes groups of a make-up of its own .drafts:",
    "xpo": "objective xpo takes groups of a make-up of its own .pair_and_copy:",
    "hypo": "objective hypo takes groups of a make-up of its own .pair_and_samples:",
    "upo": "score: 'reward', but objective upo with these settings reads 'information_gain'",
}
HYPO = ["recipe=mcpo", "selection=pair_and_samples", "negatives=none", "objective=hypo"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """One for all objectives: they share the SFT model, the reward model and the reference log-probs."""
    return tmp_path_factory.mktemp("objectives")


def in_this_process(place, item, done, work, environment, watch) -> int:
    """As launch._run_worker: the same spec, the same worker, without a process of its own."""
    spec = launch.spec(place, item, done, work)
    store.write_atomic(work / "step.json", json.dumps(spec))
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
    """Run the recipe as far as the step `last`."""
    composed = compose([*words, f"workspace={workspace}", f"run={name}"])
    assert composed.problems == []
    place = launch.Place(workspace, name, 5.0, 0.0)
    place.folder.mkdir(parents=True, exist_ok=True)
    done: dict[str, store.Artifact] = {}
    for step in leading_to(last, plan.expand(composed.config)):
        done[step.name], _ = launch.finish(place, plan.look_up(workspace, step, done), done, {}, lambda *_: None)
    return done


def words(recipe: list[str], small_run: list[str]) -> list[str]:
    return [*recipe, *small_run, "trainer.preference.max_steps=3", "trainer.preference.batch_size=16",
            "hardware.training.tokens_per_batch=1024", "hardware.training.log_every=1"]


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name not in REFUSED])
def test_objective_runs_in_the_loop(objective, small_run, use_vllm, workspace, monkeypatch):
    monkeypatch.setattr(launch, "_run_worker", in_this_process)
    done = run(words(["recipe=iterative_dpo", f"objective={objective}"], small_run), workspace, objective, "train[2]")
    trained = done["train[2]"].manifest
    assert trained["counts"]["steps"] == 3
    lines = [json.loads(line) for line in (workspace / "runs" / objective / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["step"] == "train[2]"]
    assert [line["at"] for line in steps] == [1, 2, 3]
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in steps)
    assert len({done[step].digest("model") for step in ("sft", "train[1]", "train[2]")}) == 3
    part = load_part(trained["settings"]["objective"], "objective")
    assert ("reference" in declared(part, "needs")) == ("reference" in trained["inputs"])


@pytest.mark.parametrize("objective", REFUSED)
def test_what_the_recipe_cannot_give_is_said_at_plan_by_name(objective, small_run):
    composed = compose(words(["recipe=iterative_dpo", f"objective={objective}"], small_run))
    with pytest.raises(UserError, match=REFUSED[objective]):
        plan.expand(composed.config)


def test_hypo_runs_on_pairs_with_fresh_samples_beside_them(small_run, use_vllm, workspace, monkeypatch):
    monkeypatch.setattr(launch, "_run_worker", in_this_process)
    done = run([*words(HYPO, small_run), "iterations=1"], workspace, "hypo", "train[1]")
    groups = list(tables.read(done["merge[1]"].path / "groups"))
    assert {len(group.completions) for group in groups} == {8}
    assert done["train[1]"].manifest["counts"]["steps"] == 2  # of 24 groups, 16 a step
