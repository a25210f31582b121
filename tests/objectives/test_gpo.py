"""GPM and GPO, worked by hand.

Embeddings (1, 0) and (0, 1): s = 1 1 - 0 0 = 1, reversed -1. GPO at beta = 1/2 with rewards 3 and 1: s_avg = +-1,
targets +-2 nats; log-ratios 5 and -1: L = 3^2 + 1^2 = 10.
"""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.objectives import gpo
from pipeline.objectives.gpm import average_scores, embeddings, gpm_losses, preference_scores
from pipeline.objectives.gpo import Settings
from tests.objectives.batches import batch_of, gradient

BATCH = batch_of([[-5.0, -11.0]], previous=[[-10.0, -10.0]], scores=[[3.0, 1.0]])


def test_score_is_antisymmetric() -> None:
    one, two = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert preference_scores(one, two).item() == 1 and preference_scores(two, one).item() == -1
    vectors = embeddings(torch.randn(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert vectors.norm(dim=1).tolist() == pytest.approx([1.0] * 6)
    gates = torch.rand(4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    table = preference_scores(vectors[:, None], vectors[None], gates)
    assert torch.allclose(table, -table.T, atol=1e-15) and table.abs().max() <= 1
    assert preference_scores(one, two, torch.tensor([3.0])).item() == 3


def test_scores_may_be_cyclic() -> None:
    """Three directions 120 degrees apart: each beats the next by sin 120."""
    angles = torch.tensor([0.0, 2 * math.pi / 3, 4 * math.pi / 3])
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert preference_scores(vectors, vectors.roll(-1, 0)).tolist() == pytest.approx([math.sqrt(0.75)] * 3, abs=1e-6)


def test_gpm_loss() -> None:
    assert gpm_losses(torch.zeros(1)).item() == pytest.approx(math.log(2))
    assert gpm_losses(torch.tensor([0.2], dtype=torch.float64), 0.1).item() == pytest.approx(math.log1p(math.exp(-2)))


def test_average_scores() -> None:
    """Antisymmetric parts of [[5, 3], [1, 5]]: [[0, 1], [-1, 0]], row means 1/2, -1/2."""
    assert average_scores(torch.tensor([[5.0, 3.0], [1.0, 5.0]])).tolist() == [0.5, -0.5]


def test_gpo_by_hand() -> None:
    losses, metrics = gpo.loss(BATCH, Settings(0.5))
    assert losses.item() == pytest.approx(10.0, abs=1e-12)
    assert metrics["margin"].item() == pytest.approx(3.0)
    given = batch_of(BATCH.logps, previous=BATCH.previous_logps, scores=[[1.0, -1.0]])
    assert gpo.loss(given, Settings(0.5, "averages"))[0].item() == pytest.approx(10.0, abs=1e-12)


def test_policy_equal_to_previous() -> None:
    """(s_w^2 + s_l^2) / beta^2 = 2 / 1e-6."""
    same = batch_of(BATCH.logps, previous=BATCH.logps, scores=[[3.0, 1.0]])
    assert gpo.loss(same, Settings())[0].item() == pytest.approx(2e6)


def test_gradient_and_shift_of_the_rewards() -> None:
    def slope(scores: list[list[float]]) -> list[float]:
        return gradient(lambda x: gpo.loss(batch_of(x, previous=BATCH.previous_logps, scores=scores), Settings(0.5))[0],
                        BATCH.logps)[0].tolist()

    assert slope([[3.0, 1.0]]) == [6.0, 2.0] == slope([[103.0, 101.0]])
    with pytest.raises(ValueError, match="previous_logps"):
        gpo.loss(batch_of([[-1.0, -2.0]], scores=[[1.0, 0.0]]), Settings())
