"""Recipes of the literature: each is planned, keeps its values, and says where they come from."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from flows.compose import COMPANIONS, CONF, compose
from pipeline import plan
from pipeline.config import flat
from pipeline.plan import Step

# Where a group's values arrive: the stage, and the part of its settings.
ARRIVES = {
    "trainer.sft": ("sft", "trainer."), "trainer.reward": ("train_reward", "trainer."),
    "trainer.preference": ("train_preference", "trainer."), "objective": ("train_preference", "objective."),
    "negatives": ("train_preference", "negatives."), "train": ("train_preference", ""), "sampling": ("generate", ""),
    "selection": ("build_groups", "selection."), "model": ("tokenize", ""), "data": ("import_data", ""),
}
WORDS = ("sft", "start", "reference")  # how steps are joined: tested by what they are joined to
FILES = sorted((CONF / "published").glob("*.yaml"))


def composed_with(name: str, model: Path, *words: str):
    composed = compose([f"published={name}", f"model.path={model}", "data=hh", "data.root=/x", *words])
    steps, problems = plan.try_expand(composed.config, {})
    assert composed.problems == [] and problems == []
    return composed, {step.name: step for step in steps}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_is_planned_with_every_value_of_its_file(path: Path, tiny_model: Path) -> None:
    _, steps = composed_with(path.stem, tiny_model)
    values = yaml.safe_load(path.read_text())[COMPANIONS]
    assert ("sft" in steps) == (values.get("sft", "train") == "train")
    assert sum(step.stage == "train_preference" for step in steps.values()) == values.pop("iterations", 1)
    for key, value in values.items():
        if not (CONF / key).is_dir() and key not in WORDS:
            assert arrived(steps, key) == [value], key


def arrived(steps: dict[str, Step], key: str) -> list:
    """The different values that the steps of the plan have of a key, by what each was given to run with."""
    group, _, name = key.rpartition(".")
    stage, part = ("select_prompts", "") if name == "prompts_per_iteration" else ARRIVES[group]
    name = "count" if name == "prompts_per_iteration" else name
    own = [step for step in steps.values() if step.stage == stage]
    own = [step for step in own if step.name.startswith("generate")] or own  # the evaluation samples in its own way
    found = [flat(asdict(step.settings))[part + name] for step in own]
    return [list(one) if isinstance(one, tuple) else one for i, one in enumerate(found) if one not in found[:i]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_number_has_its_source_or_is_ours(path: Path) -> None:
    """A line with a digit in its value ends with a comment; the head names the paper, and what is not exact."""
    lines = path.read_text().splitlines()
    numbers = [line for line in lines if re.match(r"^  [a-z_.0-9]+: .*\d", line)]
    assert len(numbers) > 8 and [line for line in numbers if not re.search(r"\S +# \S", line)] == []
    head = " ".join(line for line in lines if line.startswith("#"))
    assert "et al." in head and "Not exact:" in head


def test_online_rlhf_starts_from_the_previous_policy_with_the_reference_fixed(tiny_model: Path) -> None:
    _, steps = composed_with("online_rlhf", tiny_model)
    assert [str(ref) for ref in steps["train[3]"].inputs["model"]] == ["train[2]/model"]
    assert [str(ref) for ref in steps["reference[3]"].inputs["model"]] == ["sft/model"]
    assert "optimizer" not in steps["train[3]"].inputs
    assert steps["train[3]"].settings.trainer.max_steps == 1200


def test_the_users_word_wins_and_rates_stay_with_their_trainer(tiny_model: Path) -> None:
    composed, steps = composed_with("zephyr", tiny_model, "objective.beta=0.5", "trainer=lora")
    assert composed.config["objective"]["beta"] == 0.5
    trainer = steps["train[1]"].settings.trainer
    assert (trainer.lr, trainer.adapter.kind, trainer.batch_size) == (1e-5, "lora", 128)
    assert composed.notes[0] == ("published=zephyr brings 15 values, with the source of each in "
                                 "conf/published/zephyr.yaml")
