"""`replay=RULE`: the steps it puts into a recipe, and that without it nothing of a run changes."""

from __future__ import annotations

import pytest

from tests.flows.test_policies import problems_of, source, steps_of


def test_by_default_the_recipe_says_what_is_trained_on() -> None:
    steps = steps_of("recipe=pco", "iterations=3")
    assert not any(step.stage == "replay" or "replay" in step.inputs for step in steps.values())


@pytest.mark.parametrize(("recipe", "groups", "reference"), [
    ("pco", ["tokens/pref", "pairs[2]/groups", "pairs[3]/groups"], None),
    ("iterative_dpo", ["tokens/pref", "pairs[2]/groups", "pairs[3]/groups"],
     ["pref_reference/logps", "reference[2]/logps", "reference[3]/logps"]),
    ("online_dpo", ["pairs[1]/groups", "pairs[2]/groups", "pairs[3]/groups"],
     ["reference[1]/logps", "reference[2]/logps", "reference[3]/logps"])])
def test_a_rule_chooses_of_everything_so_far(recipe: str, groups: list[str], reference: list[str] | None) -> None:
    """Log-probs under a fixed reference that are there already are not taken again."""
    steps = steps_of(f"recipe={recipe}", "iterations=3", "replay=last_k", "replay.k=1")
    assert source(steps, "replay[3]", "groups") == source(steps, "train[3]", "groups") == groups
    assert source(steps, "train[3]", "replay") == source(steps, "diagnose[3]", "replay") == ["replay[3]/kept"]
    assert steps["replay[3]"].settings.rule == {"module": "pipeline.replay.last_k", "k": 1, "data_set": False}
    if reference is not None:
        assert source(steps, "train[3]", "reference") == reference
    assert list(steps).index("pairs[3]") < list(steps).index("replay[3]") < list(steps).index("train[3]")


def test_a_reference_that_moves_is_asked_about_all_of_it() -> None:
    steps = steps_of("recipe=online_dpo", "iterations=2", "replay=all", "reference=previous")
    assert source(steps, "reference[2]", "groups") == ["pairs[1]/groups", "pairs[2]/groups"]
    assert source(steps, "train[2]", "reference") == ["reference[2]/logps"]


def test_what_cannot_replay_is_told() -> None:
    assert problems_of("recipe=sft", "replay=all") == [
        "replay: the steps of this run train on no groups of several iterations, expected replay=recipe"]
    assert "replay.k: 0 is out of range, expected 1 <= x" in problems_of("recipe=pco", "replay=last_k", "replay.k=0")
    assert "no replay named 'last'" in problems_of("recipe=pco", "replay=last")[0]
