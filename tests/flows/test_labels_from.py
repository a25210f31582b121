"""`objective.labels_from`: which of the paper's values all three Cringes take, under one name and one default."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.prepare import prepare
from pipeline import plan
from pipeline.errors import UserError


def _objectives(tmp_path: Path, *words: str) -> list[dict]:
    made = prepare(["recipe=pco", f"workspace={tmp_path}", "iterations=3", *words])
    return [step.settings.objective for step in made.steps if step.stage == "train_preference"]


@pytest.mark.parametrize("words, alphas, bs, taus", [
    (["trainer=lora"], [0.005, 0.01, 0.01], [0, -10, -10], [10, 1, 1]),
    (["objective.labels_from=simulated"], [0.005, 0.01, 0.01], [0, -10, -10], [10, 1, 1]),
    (["objective.labels_from=human"], [0.01, 0.005, 0.005], [-10, -10, -10], [10, 1, 1]),
    (["objective.labels_from=human", "objective.alpha=0.3"], [0.3, 0.3, 0.3], [-10, -10, -10], [10, 1, 1]),
    (["objective.later.2.alpha=0.4", "objective.labels_from=human"], [0.01, 0.4, 0.4], [-10, -10, -10], [10, 1, 1]),
])
def test_the_papers_values_for_the_labels_there_are(words, alphas, bs, taus, tmp_path):
    """Xu et al. 2023, appendix B. What is typed holds against the word."""
    found = _objectives(tmp_path, *words)
    assert [(one["alpha"], one["b"], one["tau"]) for one in found] == list(zip(alphas, bs, taus, strict=True))
    assert all("labels_from" not in one for one in found)  # so that no key changes


@pytest.mark.parametrize("name", ["binary_cringe", "hard_cringe"])
def test_the_paper_has_one_set_for_the_other_two(name, tmp_path):
    words = [f"objective={name}"]
    assert _objectives(tmp_path, *words) == _objectives(tmp_path, *words, "objective.labels_from=human") \
        == _objectives(tmp_path, *words, "objective.labels_from=simulated")


def test_an_unknown_word_and_an_objective_without_it(tmp_path):
    with pytest.raises(UserError, match=r"objective.labels_from: 'humans', expected simulated or human"):
        _objectives(tmp_path, "objective.labels_from=humans")
    with pytest.raises(UserError, match=r"objective\.labels_from: unknown key"):
        _objectives(tmp_path, "objective=dpo", "objective.labels_from=human")


def test_the_built_in_worlds_keys_stay(tmp_path):
    """Of the first step that can be known, and what the training's key is made of."""
    made = prepare(["recipe=pco", f"workspace={tmp_path}"])
    (first,) = [step for step in made.steps if step.name == "train[1]"]
    assert first.settings.objective == {"module": "pipeline.objectives.pairwise_cringe", "alpha": 0.005, "b": 0.0,
                                        "tau": 10.0, "k": 5, "margin": "sum", "reduction": "tokens"}
    assert plan.look_up_all(tmp_path, made.steps)[0].key is not None


@pytest.mark.parametrize("words, alphas, bs, taus", [
    ([], [0.005, 0.005, 0.005], [0, 0, 0], [10, 10, 10]),
    (["objective.later.2.tau=1"], [0.005, 0.005, 0.005], [0, 0, 0], [10, 1, 1]),
    (["objective.alpha=0.3"], [0.3, 0.3, 0.3], [0, 0, 0], [10, 10, 10]),
    (["data.world=hackable"], [0.005, 0.01, 0.01], [0, -10, -10], [10, 1, 1]),
    (["data.world=hackable", "objective.tau=3"], [0.005, 0.01, 0.01], [0, -10, -10], [3, 3, 3]),
])
def test_a_small_model_of_ones_own_has_values_of_its_own(words, alphas, bs, taus, tmp_path):
    """trainer=scratch brings them; data.world=hackable, the world as it was, has the paper's. What is typed wins."""
    found = _objectives(tmp_path, *words)
    assert [(one["alpha"], one["b"], one["tau"]) for one in found] == list(zip(alphas, bs, taus, strict=True))


def test_what_a_word_brings_is_said_and_only_what_the_objective_has(tmp_path):
    made = prepare(["recipe=pco", "objective=dpo", "data.world=hackable", f"workspace={tmp_path}"])
    assert not any(" brings " in note for note in made.notes)
    made = prepare(["recipe=pco", "data.world=hackable", f"workspace={tmp_path}"])
    assert "data.world=hackable brings objective.labels_from=simulated" in made.notes
    made = prepare(["recipe=pco", f"workspace={tmp_path}"])
    assert "objective=pairwise_cringe brings objective.alpha=0.005, objective.b=0.0, objective.tau=10.0" in made.notes
    with pytest.raises(UserError, match=r"data.world: 'hard', expected default or hackable"):
        _objectives(tmp_path, "data.world=hard")
