"""HyPO, worked by hand.

Pair as in test_xpo: log(1 + e^-1) at beta = 1/2. Two samples with log pi -5 and -8 and log-ratios 3 and 1: their
leave-one-out coefficients are 2 and -2, the term (2 (-5) - 2 (-8)) / 2 = 3; lambda = 1/10 adds 0.3.
"""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.errors import UserError
from pipeline.objectives import dpo, hypo
from pipeline.objectives.hypo import Settings, leave_one_out, online_kl_losses
from tests.objectives.batches import batch_of, gradient

LOGPS, REFERENCE = [[-10.0, -20.0, -5.0, -8.0]], [[-14.0, -22.0, -8.0, -9.0]]
DPO = math.log1p(math.exp(-1))


def test_hand_worked_value() -> None:
    losses, metrics = hypo.loss(batch_of(LOGPS, REFERENCE), Settings(0.5, 0.1))
    assert losses.item() == pytest.approx(DPO + 0.3, abs=1e-12)
    assert metrics["online_kl"].item() == 2


def test_gradient() -> None:
    found = gradient(lambda x: hypo.loss(batch_of(x, REFERENCE), Settings(0.5, 0.1))[0], batch_of(LOGPS).logps)
    pull = 0.5 / (1 + math.e)
    assert found[0].tolist() == pytest.approx([-pull, pull, 0.1, -0.1])


def test_policy_equal_to_reference() -> None:
    assert hypo.loss(batch_of(REFERENCE, REFERENCE), Settings())[0].item() == pytest.approx(math.log(2), abs=1e-12)


def test_expected_gradient_is_that_of_the_reverse_kl() -> None:
    """Over all pairs of independent samples."""
    generator = torch.Generator().manual_seed(5)
    theta, ref = (torch.randn(4, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(2))
    i, j = (x.flatten() for x in torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"))
    both, there = torch.stack([i, j], dim=1), torch.ones(16, 2, dtype=torch.bool)

    def ours(x: torch.Tensor) -> torch.Tensor:
        return theta.exp()[i] * theta.exp()[j] * online_kl_losses(x.log_softmax(0)[both], ref[both], there)

    def kl(x: torch.Tensor) -> torch.Tensor:
        return x.log_softmax(0).exp() * (x.log_softmax(0) - ref)

    assert torch.allclose(gradient(ours, theta), gradient(kl, theta), atol=1e-12)


def test_leave_one_out() -> None:
    """One sample alone keeps its own value; absent ones do not count."""
    present = torch.tensor([[True, True, True], [True, False, True], [True, False, False]])
    found = leave_one_out(torch.tensor([[1.0, 2.0, 6.0], [1.0, float("nan"), 5.0], [7.0, 0.0, 0.0]]), present)
    assert found.tolist() == [[-3.0, -1.5, 4.5], [-4.0, 0.0, 4.0], [7.0, 0.0, 0.0]]


def test_pairs_need_samples_unless_lambda_is_0() -> None:
    pair = batch_of([LOGPS[0][:2]], [REFERENCE[0][:2]])
    with pytest.raises(UserError, match=r"3 or more completions.*samples of the current policy.*found a group of 2"):
        hypo.loss(pair, Settings())
    assert hypo.loss(pair, Settings(0.5, 0.0))[0].item() == dpo.loss(pair, dpo.Settings(0.5))[0].item()
