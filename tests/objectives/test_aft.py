"""AFT's alignment loss, worked by hand.

Good answers at -1 and -2, bad ones at -3 and -1 (nats): the four differences s_l - s_w are -2, 0, -1, 1, so

    L = ln(1 + e^-2 + 1 + e^-1 + e) = ln 5.221496552840...
"""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.objectives import aft
from pipeline.objectives.contract import Needs
from tests.objectives.batches import batch_of, gradient

LOGPS = [[-1.0, -3.0, -2.0, -1.0]]
SCORES = [[0.9, 0.1, 0.8, 0.2]]
WORKED = math.log(2 + math.exp(-2) + math.exp(-1) + math.e)


def test_hand_worked_value() -> None:
    losses, metrics = aft.loss(batch_of(LOGPS, scores=SCORES), aft.Settings(threshold=0.5))
    assert losses.item() == pytest.approx(WORKED, abs=1e-12)
    assert metrics["good"].item() == 2


def test_equal_values() -> None:
    """ln(1 + n_good n_bad): ln 4 for one good answer and three bad ones, ln 2 for a pair."""
    assert aft.loss(batch_of([[-5.0] * 4]), aft.Settings())[0].item() == pytest.approx(math.log(4), abs=1e-12)
    assert aft.loss(batch_of([[-5.0] * 2]), aft.Settings())[0].item() == pytest.approx(math.log(2), abs=1e-12)


def test_averages() -> None:
    """-10 over 10 tokens and -2 over 1: averages -1 and -2, L = ln(1 + e^-1)."""
    batch = batch_of([[-10.0, -2.0]], lengths=[[10, 1]])
    assert aft.loss(batch, aft.Settings("avg"))[0].item() == pytest.approx(math.log1p(math.exp(-1)), abs=1e-12)
    assert aft.loss(batch, aft.Settings("sum"))[0].item() == pytest.approx(math.log1p(math.exp(8)), abs=1e-12)


def test_gradient() -> None:
    """dL/ds_l = sum_w e^(s_l - s_w) / (1 + sum): the share of the violations an answer is part of."""
    at = torch.tensor(LOGPS)
    found = gradient(lambda x: aft.loss(batch_of(x, scores=SCORES), aft.Settings(threshold=0.5))[0], at)
    total = math.exp(WORKED)
    expected = [-(math.exp(-2) + 1) / total, (math.exp(-2) + math.exp(-1)) / total, -(math.exp(-1) + math.e) / total,
                (1 + math.e) / total]
    assert found[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_extremes_and_groups_with_one_side_only() -> None:
    logps = torch.tensor([[-2000.0, 0.0], [0.0, -2000.0], [-1.0, -2.0]], dtype=torch.float64)
    scores = [[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]]
    losses, metrics = aft.loss(batch_of(logps, scores=scores), aft.Settings(threshold=0.5))
    assert losses.tolist() == pytest.approx([2000, 0, 0])
    assert metrics["good"].tolist() == [1, 1, 0]
    slope = gradient(lambda x: aft.loss(batch_of(x, scores=scores), aft.Settings(threshold=0.5))[0], logps)
    assert slope.isfinite().all() and slope[2].tolist() == [0, 0]


def test_a_threshold_needs_scores() -> None:
    assert aft.needs(aft.Settings()) == Needs(lists=True) and aft.needs(aft.Settings(threshold=0.0)).scores
    with pytest.raises(ValueError, match="scores"):
        aft.loss(batch_of(LOGPS), aft.Settings(threshold=0.0))
