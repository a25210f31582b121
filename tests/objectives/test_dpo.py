"""DPO and cDPO: values worked by hand, gradients against the closed form, limits and symmetries.

The worked pair: log pi(y_w) = -10, log ref(y_w) = -12, so a = 2; log pi(y_l) = -20, log ref(y_l) = -19, so b = -1;
h = a - b = 3 and with beta = 0.1 the logit is 0.3:

    L_DPO = log(1 + e^-0.3)                                = 0.554355244468527
    L_cDPO(eps = 0.1) = 0.9 * 0.554355... + 0.1 * log(1 + e^0.3) = 0.9 * 0.554355... + 0.1 * 0.854355...
                                                           = 0.584355244468527
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import problems_of
from pipeline.errors import UserError
from pipeline.objectives import dpo
from pipeline.objectives.contract import LossInputs

POLICY = torch.tensor([[-10.0, -20.0]], dtype=torch.float64)
REFERENCE = torch.tensor([[-12.0, -19.0]], dtype=torch.float64)


def batch_of(logps: torch.Tensor, ref_logps: torch.Tensor | None, present: torch.Tensor | None = None) -> LossInputs:
    return LossInputs(
        logps=logps,
        lengths=torch.full(logps.shape, 5),
        present=torch.ones(logps.shape, dtype=torch.bool) if present is None else present,
        ref_logps=ref_logps,
    )


@pytest.mark.parametrize(("eps", "expected"), [(0.0, 0.554355244468527), (0.1, 0.584355244468527)])
def test_hand_worked_value(eps: float, expected: float) -> None:
    losses, metrics = dpo.loss(batch_of(POLICY, REFERENCE), dpo.Settings(beta=0.1, label_smoothing=eps))
    assert losses.item() == pytest.approx(expected, abs=1e-12)
    assert metrics["rewards_chosen"].item() == pytest.approx(0.2)
    assert metrics["rewards_rejected"].item() == pytest.approx(-0.1)
    assert metrics["margin"].item() == pytest.approx(0.3)
    assert metrics["accuracy"].item() == 1.0


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.3])
def test_policy_equal_to_reference_costs_ln_2(eps: float) -> None:
    losses, metrics = dpo.loss(batch_of(REFERENCE, REFERENCE), dpo.Settings(label_smoothing=eps))
    assert losses.item() == pytest.approx(math.log(2), abs=1e-12)
    assert metrics["accuracy"].item() == 0.0  # a tie is not a win


def test_gradient_is_the_closed_form() -> None:
    """dL/dlogp(y_w) = -beta s(-beta h) = -dL/dlogp(y_l); here beta = 0.5, h = 3."""
    logps = POLICY.clone().requires_grad_()
    dpo.loss(batch_of(logps, REFERENCE), dpo.Settings(beta=0.5))[0].sum().backward()
    pull = 0.5 / (1 + math.exp(1.5))
    assert logps.grad is not None
    assert logps.grad[0].tolist() == pytest.approx([-pull, pull], abs=1e-12)


def test_cdpo_is_flat_at_its_finite_optimum() -> None:
    """At h = logit(1 - eps) / beta the gradient is 0: eps = 0.2, beta = 0.1, h = 10 ln 4."""
    logps = torch.tensor([[10 * math.log(4), 0.0]], dtype=torch.float64, requires_grad=True)
    dpo.loss(batch_of(logps, torch.zeros(1, 2)), dpo.Settings(beta=0.1, label_smoothing=0.2))[0].sum().backward()
    assert logps.grad is not None
    assert logps.grad.abs().max().item() < 1e-15


def test_swapping_the_sides_flips_the_logit() -> None:
    """L(h) - L(-h) = -beta h, since log s(z) - log s(-z) = z."""
    forward = dpo.loss(batch_of(POLICY, REFERENCE), dpo.Settings(beta=0.1))[0]
    swapped = dpo.loss(batch_of(POLICY.flip(1), REFERENCE.flip(1)), dpo.Settings(beta=0.1))[0]
    assert (forward - swapped).item() == pytest.approx(-0.3, abs=1e-12)


def test_a_constant_added_to_both_sides_changes_nothing() -> None:
    plain = dpo.loss(batch_of(POLICY, REFERENCE), dpo.Settings())[0]
    shifted = dpo.loss(batch_of(POLICY + 7.0, REFERENCE - 3.0), dpo.Settings())[0]
    assert shifted.item() == pytest.approx(plain.item(), abs=1e-12)


def test_pairs_do_not_mix() -> None:
    logps = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)) * 30 - 50
    reference = torch.randn(6, 2, generator=torch.Generator().manual_seed(1)) * 30 - 50
    losses = dpo.loss(batch_of(logps, reference), dpo.Settings())[0]
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.equal(dpo.loss(batch_of(logps[order], reference[order]), dpo.Settings())[0], losses[order])


def test_absent_completions_contribute_nothing_even_as_nan() -> None:
    logps = torch.tensor([[-10.0, -20.0], [-5.0, float("nan")]], requires_grad=True)
    present = torch.tensor([[True, True], [True, False]])
    losses, metrics = dpo.loss(batch_of(logps, torch.zeros(2, 2), present), dpo.Settings())
    losses.sum().backward()
    assert losses[1].item() == 0.0
    assert logps.grad is not None
    assert logps.grad[1].tolist() == [0.0, 0.0]
    assert all(values[1].item() == 0.0 for values in metrics.values())


def test_lists_are_refused() -> None:
    with pytest.raises(UserError, match="compares pairs"):
        dpo.loss(batch_of(torch.zeros(1, 3), torch.zeros(1, 3)), dpo.Settings())


def test_missing_reference_is_an_error() -> None:
    with pytest.raises(ValueError, match="ref_logps"):
        dpo.loss(batch_of(POLICY, None), dpo.Settings())


@pytest.mark.parametrize(
    ("given_type", "result_type"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_half_precision_is_computed_in_float32(given_type: torch.dtype, result_type: torch.dtype) -> None:
    losses, metrics = dpo.loss(batch_of(POLICY.to(given_type), REFERENCE.to(given_type)), dpo.Settings())
    assert losses.dtype == result_type
    assert losses.item() == pytest.approx(0.554355244468527, abs=1e-6)
    assert not any(values.requires_grad for values in metrics.values())


logp = st.floats(-2000, 0, width=32)


@settings(max_examples=200, deadline=None)
@given(logp, logp, logp, logp, st.floats(0.001, 5), st.sampled_from([0.0, 0.1, 0.49]))
def test_finite_for_any_log_probs(w: float, l: float, ref_w: float, ref_l: float, beta: float, eps: float) -> None:  # noqa: E741
    logps = torch.tensor([[w, l]], requires_grad=True)
    losses = dpo.loss(batch_of(logps, torch.tensor([[ref_w, ref_l]])), dpo.Settings(beta, eps))[0]
    losses.sum().backward()
    assert losses.isfinite().all()
    assert (losses >= 0).all()
    assert logps.grad is not None
    assert logps.grad.isfinite().all()


def test_settings_outside_their_range_are_named() -> None:
    problems = problems_of(dpo.Settings, {"beta": 0, "label_smoothing": 0.5}, "objective")
    assert [p.split(":")[0] for p in problems] == ["objective.beta", "objective.label_smoothing"]
