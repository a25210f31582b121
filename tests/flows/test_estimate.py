"""`align plan` adds up what the stages say they take."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.compose import compose
from flows.estimate import count_parameters, estimate
from flows.prepare import expand
from pipeline.plan import look_up_all


def estimated(place: Path, *words: str):
    composed = compose([*words, "model=tiny", "hardware=cpu", f"workspace={place}"])
    found = estimate(composed.config, look_up_all(place, expand(composed)))
    return found, composed.config, count_parameters(composed.config["model"])


def test_a_plan_counts_samples_training_and_weights(tmp_path):
    words = ("recipe=online_dpo", "iterations=1", "sampling.prompts_per_iteration=10", "sampling.n=4",
             "sampling.max_tokens=5", "trainer.preference.max_steps=3", "trainer.preference.batch_size=2")
    found, config, weights = estimated(tmp_path, *words)
    longest = config["model"]["max_prompt_tokens"] + config["model"]["max_completion_tokens"]
    assert found.sampled_tokens == (10 + 2 * 140) * 4 * 5  # the SFT model and the policy answer 140 evaluation prompts
    assert found.flops == pytest.approx(weights * (2 * 5800 + 6 * 3 * 2 * 2 * longest))
    models = 3 + 3  # made, after sft, the reward model; the policy with its optimizer, as online_dpo keeps it
    kept = 3 * config["hardware"]["training"]["keep_checkpoints"]
    assert found.disk == pytest.approx(5800 * 12 + 4 * weights * (models + kept))


def test_a_kept_optimizer_is_two_more_copies_of_the_weights(tmp_path):
    words = ("recipe=pco", "iterations=1")
    plain, _, weights = estimated(tmp_path, *words)
    kept, _, _ = estimated(tmp_path, *words, "stage.train_preference.settings.keep_optimizer=true")
    assert kept.disk - plain.disk == pytest.approx(2 * 4 * weights)
