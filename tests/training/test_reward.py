"""The reward model's loss, by hand, and the split that stays the same in every run."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from pipeline.training import reward
from pipeline.training.gradients import BatchFacts


class Summing(torch.nn.Module):
    """A "model" whose score is weight x the sum of a row's ids: pad 0 adds nothing."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))
        self.config = SimpleNamespace(_attn_implementation="eager")

    def forward(self, input_ids, use_cache):
        return SimpleNamespace(logits=self.weight * input_ids.sum(1, keepdim=True).float())


def test_bradley_terry_by_hand(tiny):
    """Scores 0.1 x the sum of ids: the prompt cancels, so the margin is 0.1 (sum of chosen - sum of rejected)."""
    examples = tiny.examples(6)
    margins = [0.1 * (int(e.completions[0].sum()) - int(e.completions[1].sum())) for e in examples]
    losses, metrics, _ = reward.RewardTask(pad=0).losses(Summing(0.1), examples, 0, BatchFacts.of(examples))
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-m)) for m in margins], rel=1e-4, abs=1e-6)
    assert metrics["accuracy"].tolist() == [float(m > 0) for m in margins]
    measured = reward.accuracy(Summing(0.1), examples, 0, tokens_per_batch=40)
    assert measured["margin"] == pytest.approx(sum(margins) / 6, abs=1e-4)
    assert measured["accuracy"] == pytest.approx(sum(m > 0 for m in margins) / 6)


def test_several_rejected_are_averaged(tiny):
    (example,) = tiny.examples(1, k=3)
    sums = [int(c.sum()) for c in example.completions]
    losses, _, _ = reward.RewardTask(pad=0).losses(Summing(0.1), [example], 0, BatchFacts.of([example]))
    by_hand = [math.log1p(math.exp(-0.1 * (sums[0] - s))) for s in sums[1:]]
    assert losses.tolist() == pytest.approx([sum(by_hand) / 2], rel=1e-4)


def test_split_goes_by_id(tiny):
    examples = tiny.examples(400)
    training, held_out = reward.split(examples, 0.1)
    assert len(training) + len(held_out) == 400 and 20 <= len(held_out) <= 60
    assert {e.id for e in reward.split(examples[::-1], 0.1)[1]} == {e.id for e in held_out}
    assert reward.split(examples, 0.0)[1] == []
