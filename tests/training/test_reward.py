"""The reward model's loss, by hand, and the split that stays the same in every run."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pipeline.statistics import wilson
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


def test_label_smoothing_and_centring_by_hand(tiny):
    """0.8 log(1 + e^-m) + 0.2 log(1 + e^m) + 0.5 (sum of the two scores)^2."""
    examples = tiny.examples(4)
    scores = [[0.01 * int(e.prompt.sum() + c.sum()) for c in e.completions] for e in examples]
    task = reward.RewardTask(pad=0, label_smoothing=0.2, centring=0.5)
    losses, _, _ = task.losses(Summing(0.01), examples, 0, BatchFacts.of(examples))
    by_hand = [0.8 * math.log1p(math.exp(r - w)) + 0.2 * math.log1p(math.exp(w - r)) + 0.5 * (w + r) ** 2
               for w, r in scores]
    assert losses.tolist() == pytest.approx(by_hand, rel=1e-4)


def test_margins_of_the_data_by_hand(tiny):
    """L = log(1 + e^-(m - 0.5 (9 - 4))): the difference of 5 points has to show as 2.5; a pair without scores as 0."""
    examples = [replace(e, scores=scores) for e, scores in zip(tiny.examples(3), ((9.0, 4.0), None, (1.0, 1.0)),
                                                               strict=True)]
    margins = [0.01 * (int(e.completions[0].sum()) - int(e.completions[1].sum())) for e in examples]
    task = reward.RewardTask(pad=0, margin=0.5)
    losses, metrics, _ = task.losses(Summing(0.01), examples, 0, BatchFacts.of(examples))
    by_hand = [math.log1p(math.exp(-(m - wanted))) for m, wanted in zip(margins, (2.5, 0.0, 0.0), strict=True)]
    assert losses.tolist() == pytest.approx(by_hand, rel=1e-4)
    assert metrics["margin"].tolist() == pytest.approx(margins, abs=1e-4), "what is reported is the scores' own"


def test_margins_against_several_rejected(tiny):
    """Of a list each other answer has its own difference: 3 - 2 and 3 - 0."""
    (example,) = tiny.examples(1, k=3)
    sums = [int(c.sum()) for c in example.completions]
    task = reward.RewardTask(pad=0, margin=1.0)
    losses, _, _ = task.losses(Summing(0.01), [replace(example, scores=(3.0, 2.0, 0.0))], 0, BatchFacts.of([example]))
    by_hand = [math.log1p(math.exp(-(0.01 * (sums[0] - s) - wanted)))
               for s, wanted in zip(sums[1:], (1.0, 3.0), strict=True)]
    assert losses.tolist() == pytest.approx([sum(by_hand) / 2], rel=1e-4)


def test_what_held_out_comparisons_say_by_hand():
    """Margins ln 3 (sure 0.75) twice right, once wrong, and ln 9 (0.9) right. In the bin of 0.75: 2 right against
    3 x 0.75 expected, 0.25 too few; in that of 0.9: 0.1 more: (0.25 + 0.1) / 4. The longer one is preferred in 2 of 4,
    of which 1 is right; of the 2 others both are.
    """
    found = reward.measured([math.log(3), math.log(3), -math.log(3), math.log(9)], [5, -1, 2, -3], 4)
    assert found["accuracy"] == 0.75
    assert (found["accuracy_low"], found["accuracy_high"]) == wilson(0.75, 4)
    assert found["ece"] == pytest.approx(0.35 / 4)
    assert found["length_accuracy"] == 0.5
    assert found["controlled_accuracy"] == 0.75
    assert found["margin"] == pytest.approx((math.log(3) + math.log(9)) / 4)


def test_a_scorer_by_length_alone_is_right_about_nothing_else():
    """It is right where the preferred one is longer, 3 of 4 times, wrong elsewhere: one half at equal length."""
    found = reward.measured([4.0, 2.0, 1.0, -3.0], [4, 2, 1, -3], 4)
    assert (found["accuracy"], found["length_accuracy"], found["controlled_accuracy"]) == (0.75, 0.75, 0.5)
    assert "controlled_accuracy" not in reward.measured([1.0], [1], 1)


def test_a_scorer_that_says_nothing_is_right_about_a_half():
    assert reward.measured([0.0, 0.0], [1, -1], 2)["accuracy"] == 0.5


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
