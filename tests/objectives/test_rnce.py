"""RNCE: values worked by hand, gradients against w_i = softmax(r), M = 1 against DPO.

The worked group: log-ratios 4, 2, 0 and beta = 0.5, so r = (2, 1, 0):

    L = log(e^2 + e^1 + e^0) - 2 = log(11.107337927389695) - 2 = 0.407605964444380
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.objectives import dpo, rnce
from pipeline.objectives.contract import LossInputs

REFERENCE = torch.tensor([[-14.0, -22.0, -30.0]], dtype=torch.float64)
POLICY = REFERENCE + torch.tensor([[4.0, 2.0, 0.0]])


def batch_of(logps: torch.Tensor, ref_logps: torch.Tensor, present: torch.Tensor | None = None) -> LossInputs:
    present = torch.ones(logps.shape, dtype=torch.bool) if present is None else present
    return LossInputs(logps, torch.full(logps.shape, 5), present, ref_logps)


def test_hand_worked_value() -> None:
    losses, metrics = rnce.loss(batch_of(POLICY, REFERENCE), rnce.Settings(beta=0.5))
    assert losses.item() == pytest.approx(0.407605964444380, abs=1e-12)
    assert metrics["rewards_chosen"].item() == pytest.approx(2.0)
    assert metrics["rewards_rejected"].item() == pytest.approx(0.5)  # mean of 1 and 0
    assert metrics["margin"].item() == pytest.approx(1.5)
    assert metrics["accuracy"].item() == 1.0
    assert metrics["negatives"].item() == 2.0


@pytest.mark.parametrize("m", [1, 2, 5])
def test_policy_equal_to_reference_costs_ln_m_plus_1(m: int) -> None:
    logps = torch.full((1, m + 1), -33.0, dtype=torch.float64)
    assert rnce.loss(batch_of(logps, logps), rnce.Settings())[0].item() == pytest.approx(math.log(m + 1), abs=1e-12)


def test_one_negative_is_dpo_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    logps = torch.randn(64, 2, generator=generator, dtype=torch.float64) * 200 - 400
    reference = torch.randn(64, 2, generator=generator, dtype=torch.float64) * 200 - 400
    ours = rnce.loss(batch_of(logps, reference), rnce.Settings(beta=0.1))
    theirs = dpo.loss(batch_of(logps, reference), dpo.Settings(beta=0.1))
    assert (ours[0] - theirs[0]).abs().max().item() < 1e-12
    for name in ("rewards_chosen", "rewards_rejected", "margin", "accuracy"):
        assert torch.equal(ours[1][name], theirs[1][name])


def test_gradient_is_the_softmax() -> None:
    """dL/dlogp_i = beta (w_i - 1[i = 0]) with w = softmax(2, 1, 0)."""
    logps = POLICY.clone().requires_grad_()
    rnce.loss(batch_of(logps, REFERENCE), rnce.Settings(beta=0.5))[0].sum().backward()
    total = math.exp(2) + math.exp(1) + 1
    expected = [0.5 * (math.exp(2) / total - 1), 0.5 * math.exp(1) / total, 0.5 / total]
    assert logps.grad is not None
    assert logps.grad[0].tolist() == pytest.approx(expected, abs=1e-12)


def test_order_of_the_negatives_does_not_matter() -> None:
    order = torch.tensor([0, 2, 1])
    plain = rnce.loss(batch_of(POLICY, REFERENCE), rnce.Settings())[0]
    assert rnce.loss(batch_of(POLICY[:, order], REFERENCE[:, order]), rnce.Settings())[0].item() == plain.item()


def test_a_constant_added_to_all_log_ratios_changes_nothing() -> None:
    plain = rnce.loss(batch_of(POLICY, REFERENCE), rnce.Settings())[0]
    shifted = rnce.loss(batch_of(POLICY + 11.0, REFERENCE), rnce.Settings())[0]
    assert shifted.item() == pytest.approx(plain.item(), abs=1e-12)


def test_groups_of_different_sizes_in_one_batch() -> None:
    """An absent third completion leaves the two-way value, log(1 + e^-1) = 0.313261687518223; none at all leaves 0."""
    logps = torch.cat([POLICY, POLICY, POLICY, POLICY])
    logps[1, 2] = float("inf")
    logps = logps.requires_grad_()
    present = torch.tensor([[True, True, True], [True, True, False], [True, False, False], [False, True, True]])
    reference = REFERENCE.expand(4, 3)
    losses, metrics = rnce.loss(batch_of(logps, reference, present), rnce.Settings(beta=0.5))
    assert losses.tolist() == pytest.approx([0.407605964444380, 0.313261687518223, 0.0, 0.0], abs=1e-12)
    assert metrics["negatives"].tolist() == [2, 1, 0, 0]
    assert metrics["accuracy"].tolist() == [1, 1, 0, 0]
    losses.sum().backward()
    assert logps.grad is not None
    assert logps.grad.isfinite().all()
    assert (logps.grad[~present] == 0).all()
    assert (logps.grad[2:] == 0).all()


def test_a_batch_of_single_completions_has_no_loss() -> None:
    losses, _ = rnce.loss(batch_of(POLICY[:, :1], REFERENCE[:, :1]), rnce.Settings())
    assert losses.tolist() == [0.0]


@pytest.mark.parametrize("given_type", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_computed_in_float32(given_type: torch.dtype) -> None:
    losses = rnce.loss(batch_of(POLICY.to(given_type), REFERENCE.to(given_type)), rnce.Settings(beta=0.5))[0]
    assert losses.dtype == torch.float32
    assert losses.item() == pytest.approx(0.407605964444380, abs=1e-6)


logps_of_four = st.lists(st.floats(-2000, 0, width=32), min_size=4, max_size=4)


@settings(max_examples=200, deadline=None)
@given(logps_of_four, logps_of_four, st.lists(st.booleans(), min_size=4, max_size=4), st.floats(0.001, 5))
def test_finite_for_any_log_probs(policy: list[float], reference: list[float], there: list[bool], beta: float) -> None:
    logps = torch.tensor([policy], requires_grad=True)
    losses = rnce.loss(batch_of(logps, torch.tensor([reference]), torch.tensor([there])), rnce.Settings(beta))[0]
    losses.sum().backward()
    assert losses.isfinite().all()
    assert logps.grad is not None
    assert logps.grad.isfinite().all()
