"""A score among a prompt's own samples decides no evaluation; the judge that gives it may, shown both sides."""

from __future__ import annotations

import pytest

from flows import relative
from flows.compose import compose

JUDGE = ["recipe=online_dpo", "data=files", "reward=judge", "reward.scorer.model=m"]


@pytest.mark.parametrize("words", [
    JUDGE, [*JUDGE, "reward.scorer.template=list"], ["recipe=online_dpo", "data=files", "reward=pairwise"],
    ["recipe=online_dpo", "data=files", "selection=minimax"]])
def test_it_cannot_decide(words: list[str]) -> None:
    (problem,) = relative.problems(compose(words).config)
    assert problem.startswith("evaluation.score: 'reward' is how an answer does among its own prompt's samples")
    assert "evaluation=judged" in problem


@pytest.mark.parametrize("words", [
    [*JUDGE, "evaluation=judged"], [*JUDGE, "reward.scorer.template=rubric"], [*JUDGE, "data=minifarm"],
    ["recipe=online_dpo", "data=files", "reward=length"],
    [*JUDGE, "evaluation.score=words", "data.judge.also={words: {module: pipeline.rewards.length}}"]])
def test_what_can(words: list[str]) -> None:
    """The judge shown both answers, a rubric's number, the data's own judge, a rule, another score."""
    given = compose(words)
    assert given.problems == []
    assert relative.problems(given.config) == []
    judge = given.config["evaluation"]["judge"]
    assert judge == (given.config["reward"]["scorer"] if "evaluation=judged" in words else None)
