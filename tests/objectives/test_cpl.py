"""CPL, worked by hand.

Chosen tokens -1, -2, rejected -4, -8. gamma = 1/2: sums -1 - 1 = -2 and -4 - 4 = -8. alpha = 1/2, lambda = 1/4:
z_w = -1, lambda z_l = -1, so ln 2; with gamma = 1: z_w = -3/2, lambda z_l = -3/2, ln 2 too, and at lambda = 1
softplus(-6 + 3/2). gamma = 9/10: -2.8 and -11.2, at lambda = 1 softplus(-5.6 + 1.4).
"""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.errors import UserError
from pipeline.objectives import cpl, cpo
from pipeline.objectives.contract import LossInputs, TokenInputs
from pipeline.objectives.cpl import Settings
from tests.objectives.batches import batch_of, gradient


def batch(logps: torch.Tensor) -> LossInputs:
    """Two tokens of the chosen answer, two of the rejected one."""
    group, column = torch.zeros(4, dtype=torch.int64), torch.tensor([0, 0, 1, 1])
    tokens = TokenInputs(torch.zeros(4, dtype=torch.int64), group, column, torch.tensor([0, 1, 0, 1]), logps)
    return batch_of([[logps[:2].sum().item(), logps[2:].sum().item()]], lengths=[[2, 2]], tokens=tokens)


LOGPS = torch.tensor([-1.0, -2.0, -4.0, -8.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("bias", "gamma", "expected"),
    [(0.25, 0.5, math.log(2)), (0.25, 1.0, math.log(2)), (1.0, 1.0, math.log1p(math.exp(-4.5))),
     (1.0, 0.9, math.log1p(math.exp(-4.2)))],
)
def test_hand_worked(bias: float, gamma: float, expected: float) -> None:
    losses, metrics = cpl.loss(batch(LOGPS), Settings(0.5, bias, gamma))
    assert losses.item() == pytest.approx(expected, abs=1e-12)
    assert metrics["rewards_chosen"].item() == pytest.approx(-0.5 * (1 + 2 * gamma), abs=1e-12)


def test_gradient() -> None:
    """At z_w = lambda z_l the logistic is 1/2: -alpha gamma^t / 2 on the chosen tokens, lambda alpha gamma^t / 2."""
    found = gradient(lambda x: cpl.loss(batch(x), Settings(0.5, 0.25, 0.5))[0], LOGPS)
    assert found.tolist() == pytest.approx([-0.25, -0.125, 0.0625, 0.03125], abs=1e-12)


def test_without_bias_and_discount_it_is_cpo() -> None:
    ours = cpl.loss(batch(LOGPS), Settings(0.3, 1.0, 1.0))[0]
    assert ours.item() == pytest.approx(cpo.loss(batch(LOGPS), cpo.Settings(0.3, 0.0))[0].item(), abs=1e-12)


def test_lists_are_refused() -> None:
    with pytest.raises(UserError, match="cpl compares pairs"):
        cpl.loss(batch_of([[-1.0, -2.0, -3.0]]), Settings())
