"""XPO, worked by hand: h = 4 - 2 at beta = 1/2 is DPO's log(1 + e^-1); alpha = 1/100 on log pi(y~) = -20 adds -0.2."""

from __future__ import annotations

import math

import pytest

from pipeline.errors import UserError
from pipeline.objectives import dpo, xpo
from pipeline.objectives.xpo import Settings
from tests.objectives.batches import batch_of, gradient

LOGPS, REFERENCE = [[-10.0, -20.0, -20.0]], [[-14.0, -22.0, -22.0]]
DPO = math.log1p(math.exp(-1))


def test_hand_worked_value() -> None:
    losses, metrics = xpo.loss(batch_of(LOGPS, REFERENCE), Settings(0.5, 0.01))
    assert losses.item() == pytest.approx(DPO - 0.2, abs=1e-12)
    assert metrics["reference_sample_logps"].item() == -20 and metrics["margin"].item() == 1


def test_policy_equal_to_reference() -> None:
    """ln 2 + alpha log ref(y~)."""
    losses, _ = xpo.loss(batch_of(REFERENCE, REFERENCE), Settings(0.5, 0.01))
    assert losses.item() == pytest.approx(math.log(2) - 0.22, abs=1e-12)


def test_without_optimism_it_is_dpo() -> None:
    pair = batch_of([LOGPS[0][:2]], [REFERENCE[0][:2]])
    ours = xpo.loss(batch_of(LOGPS, REFERENCE), Settings(0.5, 0.0))[0]
    assert ours.item() == dpo.loss(pair, dpo.Settings(0.5))[0].item()


def test_gradient() -> None:
    """-beta s(-beta h) for the chosen, its negative for the rejected, alpha for the reference's sample."""
    found = gradient(lambda x: xpo.loss(batch_of(x, REFERENCE), Settings(0.5, 0.01))[0], batch_of(LOGPS).logps)
    pull = 0.5 / (1 + math.e)
    assert found[0].tolist() == pytest.approx([-pull, pull, 0.01])


def test_layouts_are_checked() -> None:
    with pytest.raises(UserError, match=r"3 completions.*the reference's sample.*found a group of 2"):
        xpo.loss(batch_of([[-1.0, -2.0]], [[-1.0, -2.0]]), Settings())
    single = batch_of([[-1.0]], [[-1.0]])
    assert xpo.loss(single, Settings())[0].tolist() == [0.0]
