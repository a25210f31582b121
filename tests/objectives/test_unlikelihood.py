"""Unlikelihood, worked by hand.

A rejected completion of two tokens with p = 1/2 and p = 1/4: -ln(1/2) - ln(3/4) = 0.980829253011726; a chosen one with
p = 1/2: CE = ln 2. At alpha = 1/2 the pair costs ln 2 + 0.490414626505863 = 1.183561807065808.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.objectives import unlikelihood
from pipeline.objectives.contract import LossInputs, TokenInputs
from pipeline.objectives.unlikelihood import Settings, unlikelihood_losses

LOGPS = torch.tensor([0.5, 0.5, 0.25], dtype=torch.float64).log()


def batch(logps: torch.Tensor = LOGPS, labels: torch.Tensor | None = None) -> LossInputs:
    """A pair: one token, then two."""
    column = torch.tensor([0, 1, 1])
    sums = torch.stack([logps[:1].sum(), logps[1:].sum()])[None]
    zeros = torch.zeros(3, dtype=torch.long)
    tokens = TokenInputs(zeros, zeros, column, torch.tensor([0, 0, 1]), logps)
    return LossInputs(sums, torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.bool), labels=labels, tokens=tokens)


def test_hand_worked_value() -> None:
    losses, metrics = unlikelihood.loss(batch(), Settings(alpha=0.5))
    assert losses.item() == pytest.approx(1.183561807065808, abs=1e-12)
    assert metrics["ce_per_token"].item() == pytest.approx(math.log(2))
    assert metrics["unlikelihood_per_token"].item() == pytest.approx(0.980829253011726 / 2)


def single(label: bool) -> float:
    one = torch.zeros(1, dtype=torch.long)
    tokens = TokenInputs(one, one, one, one, LOGPS[2:])
    inputs = LossInputs(LOGPS[2:][None], torch.tensor([[1]]), torch.ones(1, 1, dtype=torch.bool),
                        labels=torch.tensor([label]), tokens=tokens)
    return unlikelihood.loss(inputs, Settings(alpha=2.0))[0].item()


def test_a_single_completion_has_the_term_of_its_label() -> None:
    assert single(True) == pytest.approx(math.log(4), abs=1e-12)
    assert single(False) == pytest.approx(2 * math.log(4 / 3), abs=1e-12)


def test_gradient_is_the_odds() -> None:
    """d/dlog p of -log(1 - p) = p / (1 - p): 1 at p = 1/2, 1/3 at p = 1/4."""
    logps = LOGPS.clone().requires_grad_()
    unlikelihood.loss(batch(logps), Settings())[0].sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == pytest.approx([-1, 1, 1 / 3], abs=1e-12)


def test_certain_tokens_stay_finite() -> None:
    """p = 1: the floor, -ln 1e-20 = 46.05, without gradient; and half precision is computed in float32."""
    logps = torch.zeros(1, requires_grad=True)
    value = unlikelihood_losses(logps)
    value.sum().backward()
    assert value.item() == pytest.approx(46.0517, abs=1e-3)
    assert logps.grad is not None and logps.grad.item() == 0
    assert unlikelihood_losses(LOGPS.bfloat16()).dtype == torch.float32


@given(st.floats(-2000, 0, width=32))
def test_finite_for_any_log_prob(logp: float) -> None:
    logps = torch.tensor([logp], requires_grad=True)
    value = unlikelihood_losses(logps)
    value.sum().backward()
    assert logps.grad is not None
    assert value.isfinite().all() and logps.grad.isfinite().all() and value.item() >= 0


def test_needs_tokens() -> None:
    with pytest.raises(ValueError, match="tokens"):
        bare = LossInputs(torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool))
        unlikelihood.loss(bare, Settings())


def test_float32_keeps_what_is_unlikely():
    """-log(1 - p) = p (1 + p / 2 ...) and its gradient p / (1 - p) where 1 - p rounds to 1: p = 1e-12 and 1e-30."""
    logps = torch.tensor([1e-12, 1e-30, 0.25, 0.75]).double().log().float().requires_grad_()
    value = unlikelihood_losses(logps)
    value.sum().backward()
    p = logps.detach().double().exp()
    assert value.tolist() == pytest.approx((-torch.log1p(-p)).tolist(), rel=1e-5, abs=0.0)
    assert logps.grad.tolist() == pytest.approx((p / (1 - p)).tolist(), rel=1e-5, abs=0.0)
