"""GPO, worked by hand: at beta = 1/2 rewards 3 and 1 give s_avg = +-1 and targets of +-2 nats; log-ratios 5 and -1:
L = 3^2 + 1^2 = 10.
"""

from __future__ import annotations

import pytest

from pipeline.objectives import gpo
from pipeline.objectives.gpo import Settings
from tests.objectives.batches import batch_of, gradient

BATCH = batch_of([[-5.0, -11.0]], previous=[[-10.0, -10.0]], scores=[[3.0, 1.0]])


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
