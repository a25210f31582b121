"""`align run recipe=iterative_dpo objective=<any>` on a smaller built-in world, for every kind of objective there is,
and `selection=<any>`, each by that one word.

The recipe up to the second iteration's policy, with real stages, real vLLM (the test run's one server) and a learned
reward model; only training is short. Objectives that declare the same and have the same hooks go the same way through
the loop: `make test` runs one of each kind, `make test-long` the others. Their functions are all swept in
tests/objectives/test_all.py.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from flows import presets
from flows.compose import COMPANIONS, CONF
from flows.settings import option_node, options
from pipeline import columns, store, tables
from pipeline.config import load_part
from pipeline.objectives.contract import Objective, needs_of
from pipeline.records import Group
from tests.flows.loops import run

pytestmark = pytest.mark.slow
# The others make groups that one objective takes, which brings them along.
# Not those of other recipes' samples, nor minimax: no answer of this world is code with a test.
SELECTIONS = [name for name in options(CONF, "selection")
              if name not in ("drafts", "drawn", "minimax", "pair_and_samples", "policy_and_reference")]
MORE = {"best_rest": ["objective=rnce"], "best_rest_varied": ["objective=rnce", "selection.swapped=added"],
        "relabel": ['selection.text="Score {goal}."']}  # its own text alone would fill this world's context
# of another policy; of the scorer they bring along
OTHER_SCORES = {"best_rest", "best_rest_varied", "cdr", "maxmin", "spa", "upo"}


def kind(name: str) -> tuple[Any, ...]:
    """What makes the loop go another way for an objective: what it asks for, how it is averaged, what it carries."""
    node = option_node(CONF, "objective", name)
    node.pop(presets.WORDS["objective"], None)
    companions, later = node.pop(COMPANIONS, None), node.pop("later", None)
    part = load_part(node, "objective", Objective)
    plugin = part.plugin
    carries = bool(plugin.state(part.settings)), plugin.parameters is not None
    return needs_of(part), part.of(plugin.normalise), *carries, json.dumps(companions), later is not None


def objectives() -> list[Any]:
    """Every objective there is; all but the first of each kind are left to `make test-long`."""
    seen, found = set(), []
    for name in sorted(options(CONF, "objective"), key=lambda name: (name != "dpo", name)):
        same = kind(name)
        found.append(pytest.param(name, marks=[pytest.mark.long] if same in seen else []))
        seen.add(same)
    return found


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """One for all objectives: they share the SFT model, the reward model and the reference log-probs."""
    return tmp_path_factory.mktemp("objectives")


def words(recipe: list[str], small_run: list[str]) -> list[str]:
    return [*recipe, *small_run, "trainer.preference.max_steps=3", "trainer.preference.batch_size=16",
            "hardware.training.tokens_per_batch=1024", "hardware.training.log_every=1"]


@pytest.mark.parametrize("objective", objectives())
def test_objective_runs_in_the_loop(objective, small_run, use_vllm, workspace):
    done = run(words(["recipe=iterative_dpo", f"objective={objective}"], small_run), workspace, objective, "train[2]")
    trained = done["train[2]"].manifest
    assert trained["counts"]["steps"] == 3
    lines = [json.loads(line) for line in (workspace / "runs" / objective / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["step"] == "train[2]"]
    assert [line["at"] for line in steps] == [1, 2, 3]
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in steps)
    assert len({done[step].digest("model") for step in ("sft", "train[1]", "train[2]")}) == 3
    part = load_part(trained["settings"]["objective"], "objective", Objective)
    assert needs_of(part).reference == ("reference" in trained["inputs"])


def groups_of(artifact: store.Artifact) -> list[Group]:
    return list(tables.read(artifact.path / "groups"))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_selection_runs_in_the_loop(selection, small_run, use_vllm, workspace):
    """Its groups, made of what the policy of iteration 1 said, are trained on; every rule pairs one stored table."""
    given = ["recipe=iterative_dpo", f"selection={selection}", *MORE.get(selection, [])]
    done = run(words(given, small_run), workspace, f"selection-{selection}", "train[2]")
    made = groups_of(done["pairs[2]"])
    assert made and {c.policy for g in made for c in g.completions} == {done["train[1]"].digest("model")}
    assert done["train[2]"].manifest["counts"]["steps"] == 3
    if selection not in OTHER_SCORES:
        stored = run(words(["recipe=iterative_dpo"], small_run), workspace, "stored", "score[2]")
        assert done["score[2]"] == stored["score[2]"]


def test_hypo_learns_from_every_sample_beside_the_pair(small_run, use_vllm, workspace):
    done = run(words(["recipe=iterative_dpo", "objective=hypo"], small_run), workspace, "hypo", "train[2]")
    assert {len(group.completions) for group in groups_of(done["pairs[2]"])} == {6}


def test_xpo_knows_who_wrote_each_sample(small_run, use_vllm, workspace):
    """The third completion is the reference's, and one of the two compared; the other is the policy's."""
    done = run(words(["recipe=iterative_dpo", "objective=xpo"], small_run), workspace, "xpo", "train[2]")
    policy, reference = done["train[1]"].digest("model"), done["sft"].digest("model")
    made = groups_of(done["pairs[2]"])
    for group in made:
        *pair, sample = group.completions
        assert {c.policy for c in pair} == {policy, reference} and sample.policy == reference
        assert sample.token_ids in [c.token_ids for c in pair if c.policy == reference]
    assert {len(g.completions) for g in made} == {3}


def test_srpo_compares_answers_behind_each_others_drafts(small_run, use_vllm, workspace):
    """Six conditionals; log-probs of the reference are those of each one's own prompt."""
    done = run(words(["recipe=iterative_dpo", "objective=srpo"], small_run), workspace, "srpo", "train[2]")
    pairs = columns.Source(done["pairs[1]"].path / "groups", done["pairs[1]"].digest("groups"))
    for group in columns.with_logps(pairs, [done["reference[1]"].path / "logps"]):
        best, worst = (c.token_ids for c in group.completions[:2])
        assert [c.token_ids for c in group.completions] == [best, worst, best, worst, worst, best]
        prompts = [c.prompt_ids for c in group.completions]
        assert prompts[:2] == [(), ()] and prompts[2] == prompts[3] != prompts[4] == prompts[5]
        assert len({c.ref_logp for c in group.completions}) == 6


def test_egpo_takes_its_second_half_step_from_where_the_first_began(small_run, use_vllm, workspace):
    """The same two samples of the policy are judged against its own further ones, then against the half-way one's."""
    done = run(words(["recipe=egpo"], small_run), workspace, "egpo", "train[2]")
    start, half = done["train[1]"].digest("model"), done["half[2]"].digest("model")
    first, second = groups_of(done["half_pairs[2]"]), groups_of(done["pairs[2]"])
    pairs = {g.id: [c.token_ids for c in g.completions[:2]] for g in first}
    assert all(pairs[g.id] == [c.token_ids for c in g.completions[:2]] for g in second if g.id in pairs)
    assert {c.policy for g in first for c in g.completions} == {start} != {half}
    assert {c.policy for g in second for c in g.completions[2:]} == {half}
    assert len({start, half, done["train[2]"].digest("model")}) == 3
