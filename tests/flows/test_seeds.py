"""What a seed changes: each of the four is drawn from by its own steps, and `seed` alone is all four."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.compose import compose
from flows.prepare import expand
from pipeline import plan
from pipeline.errors import UserError


def seeds(*words: str) -> dict[str, int]:
    return {step.name: step.seed for step in expand(compose(["recipe=pco", "engine=transformers", *words]))}


def test_by_default_every_step_draws_from_the_one_seed():
    """So the keys of everything made before stay what they were."""
    assert set(seeds("seed=3").values()) == {3}


def test_each_seed_has_its_steps():
    found = seeds("seeds.data=1", "seeds.sft=2", "seeds.reward=3", "seeds.train=4")
    assert {name for name, seed in found.items() if seed == 1} == {"prompts[2]"}
    assert {name for name, seed in found.items() if seed == 3} == {"reward"}
    assert {found[name] for name in ("init", "sft", "baseline")} == {2}
    assert {found[name] for name in ("train[1]", "answers[1]", "evaluate[1]", "generate[2]", "train[2]")} == {4}


def test_a_seed_that_is_none_is_told_once():
    with pytest.raises(UserError) as wrong:
        expand(compose(["recipe=pco", "engine=transformers", "seed=x", "seeds.sft=-1"]))
    assert wrong.value.problems == ["seed: expected a whole number, got 'x'"]
    with pytest.raises(UserError) as wrong:
        expand(compose(["recipe=pco", "engine=transformers", "seeds.sft=-1"]))
    assert wrong.value.problems == ["seeds.sft: -1 is out of range, expected 0 <= x"]


def test_a_model_that_is_given_is_the_same_for_every_seed(tiny_model: Path, tmp_path: Path):
    """Its folder is not copied for each: the key holds no seed. One made from nothing is drawn anew."""
    def init(*words: str) -> object:
        steps = expand(compose(["recipe=pco", "engine=transformers", "trainer=scratch",
                                 "model.max_prompt_tokens=64", "model.max_completion_tokens=64", *words]))
        (step,) = (step for step in steps if step.name == "init")
        return plan.key_parts(tmp_path, step, {})["seed"]

    assert [init("model=path", f"model.path={tiny_model}", f"seed={n}") for n in (0, 7)] == [None, None]
    steps = expand(compose(["recipe=pco", "engine=transformers", "seed=7"]))
    assert next(step for step in steps if step.name == "init").plugin.seeded(steps[1].settings) is True
