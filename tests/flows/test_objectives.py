"""`align run recipe=iterative_dpo objective=<any>` on a smaller built-in world, for every objective there is, and
`selection=<any>`, each by that one word.

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

from flows import step as launch
from flows.compose import CONF, compose
from pipeline import columns, files, plan, store, tables, worker
from pipeline.config import declared, load_part
from pipeline.records import Group

pytestmark = pytest.mark.slow
OBJECTIVES = sorted(path.stem for path in (CONF / "objective").glob("*.yaml"))
# The others make groups that one objective takes, which brings them along.
SELECTIONS = [name for name in sorted(path.stem for path in (CONF / "selection").glob("*.yaml"))
              if name not in ("drafts", "drawn", "pair_and_samples", "policy_and_reference")]
MORE = {"best_rest": ["objective=rnce"],
        "relabel": ['selection.text="Score {goal}."']}  # its own text alone would fill this world's context


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """One for all objectives: they share the SFT model, the reward model and the reference log-probs."""
    return tmp_path_factory.mktemp("objectives")


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


@pytest.mark.parametrize("objective", OBJECTIVES)
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


def groups_of(artifact: store.Artifact) -> list[Group]:
    return list(tables.read(artifact.path / "groups"))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_selection_runs_in_the_loop(selection, small_run, use_vllm, workspace, monkeypatch):
    """Its groups, made of what the policy of iteration 1 said, are trained on."""
    monkeypatch.setattr(launch, "_run_worker", in_this_process)
    given = ["recipe=iterative_dpo", f"selection={selection}", *MORE.get(selection, [])]
    done = run(words(given, small_run), workspace, f"selection-{selection}", "train[2]")
    made = groups_of(done["pairs[2]"])
    assert made and {c.policy for g in made for c in g.completions} == {done["train[1]"].digest("model")}
    assert done["train[2]"].manifest["counts"]["steps"] == 3


def test_hypo_learns_from_every_sample_beside_the_pair(small_run, use_vllm, workspace, monkeypatch):
    monkeypatch.setattr(launch, "_run_worker", in_this_process)
    done = run(words(["recipe=iterative_dpo", "objective=hypo"], small_run), workspace, "hypo", "train[2]")
    assert {len(group.completions) for group in groups_of(done["pairs[2]"])} == {6}


def test_xpo_knows_who_wrote_each_sample(small_run, use_vllm, workspace, monkeypatch):
    """The third completion is the reference's, and one of the two compared; the other is the policy's."""
    monkeypatch.setattr(launch, "_run_worker", in_this_process)
    done = run(words(["recipe=iterative_dpo", "objective=xpo"], small_run), workspace, "xpo", "train[2]")
    policy, reference = done["train[1]"].digest("model"), done["sft"].digest("model")
    made = groups_of(done["pairs[2]"])
    for group in made:
        *pair, sample = group.completions
        assert {c.policy for c in pair} == {policy, reference} and sample.policy == reference
        assert sample.token_ids in [c.token_ids for c in pair if c.policy == reference]
    assert {len(g.completions) for g in made} == {3}


def test_srpo_compares_answers_behind_each_others_drafts(small_run, use_vllm, workspace, monkeypatch):
    """Six conditionals; log-probs of the reference are those of each one's own prompt."""
    monkeypatch.setattr(launch, "_run_worker", in_this_process)
    done = run(words(["recipe=iterative_dpo", "objective=srpo"], small_run), workspace, "srpo", "train[2]")
    pairs = columns.Source(done["pairs[1]"].path / "groups", done["pairs[1]"].digest("groups"))
    for group in columns.with_logps(pairs, [done["reference[1]"].path / "logps"]):
        best, worst = (c.token_ids for c in group.completions[:2])
        assert [c.token_ids for c in group.completions] == [best, worst, best, worst, worst, best]
        prompts = [c.prompt_ids for c in group.completions]
        assert prompts[:2] == [(), ()] and prompts[2] == prompts[3] != prompts[4] == prompts[5]
        assert len({c.ref_logp for c in group.completions}) == 6


def test_egpo_takes_its_second_half_step_from_where_the_first_began(small_run, use_vllm, workspace, monkeypatch):
    """The same two samples of the policy are judged against its own further ones, then against the half-way one's."""
    monkeypatch.setattr(launch, "_run_worker", in_this_process)
    done = run(words(["recipe=egpo"], small_run), workspace, "egpo", "train[2]")
    start, half = done["train[1]"].digest("model"), done["half[2]"].digest("model")
    first, second = groups_of(done["half_pairs[2]"]), groups_of(done["pairs[2]"])
    pairs = {g.id: [c.token_ids for c in g.completions[:2]] for g in first}
    assert all(pairs[g.id] == [c.token_ids for c in g.completions[:2]] for g in second if g.id in pairs)
    assert {c.policy for g in first for c in g.completions} == {start} != {half}
    assert {c.policy for g in second for c in g.completions[2:]} == {half}
    assert len({start, half, done["train[2]"].digest("model")}) == 3
