"""Implicit PRM, worked by hand: log-ratios 4 and -2 at beta = 1/2 are rewards 2 and -1.

Pair: -log s(2) - log s(1) = 0.126928011042973 + 0.313261687518223.
"""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.objectives import implicit_prm
from pipeline.objectives.implicit_prm import Settings
from tests.objectives.batches import batch_of, gradient

REFERENCE = torch.tensor([[-14.0, -22.0]], dtype=torch.float64)
POLICY = REFERENCE + torch.tensor([[4.0, -2.0]])


def test_hand_worked_pair() -> None:
    losses, metrics = implicit_prm.loss(batch_of(POLICY, REFERENCE), Settings(0.5))
    assert losses.item() == pytest.approx(0.126928011042973 + 0.313261687518223, abs=1e-12)
    assert [metrics[k].item() for k in ("rewards_chosen", "rewards_rejected", "margin", "accuracy")] == [2, -1, 3, 1]


@pytest.mark.parametrize(("label", "expected"), [(True, 0.126928011042973), (False, 2.126928011042973)])
def test_hand_worked_singles(label: bool, expected: float) -> None:
    batch = batch_of(POLICY[:, :1], REFERENCE[:, :1], labels=torch.tensor([label]))
    losses, metrics = implicit_prm.loss(batch, Settings(0.5))
    assert losses.item() == pytest.approx(expected, abs=1e-12)
    assert metrics["accuracy"].item() == float(label)


def test_policy_equal_to_reference() -> None:
    assert implicit_prm.loss(batch_of(REFERENCE, REFERENCE), Settings())[0].item() == pytest.approx(2 * math.log(2))


def test_gradient_and_extremes() -> None:
    """beta (s(r) - l)."""
    found = gradient(lambda x: implicit_prm.loss(batch_of(x, REFERENCE), Settings(0.5))[0], POLICY)
    assert found[0].tolist() == pytest.approx([-0.5 / (1 + math.exp(2)), 0.5 / (1 + math.e)], abs=1e-12)
    far = gradient(lambda x: implicit_prm.loss(batch_of(x, [[0.0, -2000.0]]), Settings(5.0))[0], REFERENCE * 0)
    assert far.isfinite().all()
