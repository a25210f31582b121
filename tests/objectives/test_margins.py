"""Losses of the margin: IPO, hinge, length-normalised DPO, Flex-DPO, DiscoPOP, f-DPO, AOT.

The worked pair has a = 2, b = -1, h = 3, |y_w| = 4, |y_l| = 8.
"""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.config import problems_of
from pipeline.objectives import aot, discopop, dpo, fdpo, flex_dpo, hinge, ipo, sigmoid_norm

LN2 = math.log(2)


def softplus(z: float) -> float:
    return math.log1p(math.exp(-abs(z))) + max(z, 0.0)


# -------------------------------------------------------------------------------------------------------------- IPO


def test_ipo_hand_worked(worked):
    """Averages: (2/4 + 1/8 - 5)^2 = 4.375^2 = 19.140625; sums: (3 - 5)^2 = 4."""
    assert worked.value(ipo, ipo.Settings(tau=0.1)) == pytest.approx(19.140625, abs=1e-12)
    assert worked.value(ipo, ipo.Settings(tau=0.1, normalize=False)) == pytest.approx(4.0, abs=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_ipo_at_the_reference(worked, tau, normalize):
    got = worked.at_reference(ipo, ipo.Settings(tau=tau, normalize=normalize))
    assert got == pytest.approx(1 / (4 * tau**2), abs=1e-12)


def test_ipo_gradient_is_linear_in_the_residual(worked):
    """2 (0.625 - 5) = -8.75, over 4 tokens and minus over 8: -2.1875, 1.09375. Sums: 2 (3 - 5) = -4 and 4."""
    assert worked.gradient(ipo, ipo.Settings())[0] == pytest.approx([-2.1875, 1.09375], abs=1e-12)
    assert worked.gradient(ipo, ipo.Settings(normalize=False))[0] == pytest.approx([-4.0, 4.0], abs=1e-12)


def test_ipo_is_fitted_at_its_target_and_grows_beyond_it(worked):
    """h = 5 costs nothing; h = 2000 costs (2000 - 5)^2."""
    zeros, settings = worked.doubles([0.0, 0.0]), ipo.Settings(normalize=False)
    assert worked.value(ipo, settings, worked.pairs(worked.doubles([0.0, -5.0]), zeros)) == 0.0
    assert worked.value(ipo, settings, worked.pairs(worked.doubles([0.0, -2000.0]), zeros)) == 1995.0**2


# ------------------------------------------------------------------------------------------------------------ hinge


def test_hinge_hand_worked(worked):
    """1 - 0.05 * 3 = 0.85; at the reference 1; from h = 1 / gamma = 20 on 0, and no gradient at the kink."""
    assert worked.value(hinge, hinge.Settings()) == pytest.approx(0.85, abs=1e-12)
    assert worked.at_reference(hinge, hinge.Settings()) == 1.0
    assert worked.gradient(hinge, hinge.Settings())[0] == pytest.approx([-0.05, 0.05], abs=1e-12)
    for h in (-20.0, -500.0):
        at = worked.doubles([0.0, h])
        zeros = worked.doubles([0.0, 0.0])
        assert worked.value(hinge, hinge.Settings(), worked.pairs(at, zeros)) == 0.0
        assert worked.gradient(hinge, hinge.Settings(), at, ref_logps=zeros) == [[0.0, 0.0]]


def test_hinge_of_a_badly_ranked_pair_is_linear(worked):
    """h = -1000: 1 + 50 = 51."""
    batch = worked.pairs(worked.doubles([-1000.0, 0.0]), worked.doubles([0.0, 0.0]))
    assert worked.value(hinge, hinge.Settings(), batch) == pytest.approx(51.0, abs=1e-12)


# ----------------------------------------------------------------------------------- length-normalised DPO, Flex-DPO


def test_sigmoid_norm_hand_worked(worked):
    """z = 5 (0.5 + 0.125) = 3.125: log(1 + e^-3.125) = 0.0429990792290878; dL/dz = -s(-3.125)."""
    assert worked.value(sigmoid_norm, sigmoid_norm.Settings()) == pytest.approx(0.04299907922908782, abs=1e-12)
    assert worked.at_reference(sigmoid_norm, sigmoid_norm.Settings()) == pytest.approx(LN2, abs=1e-12)
    pull = 5 / (1 + math.exp(3.125))
    got = worked.gradient(sigmoid_norm, sigmoid_norm.Settings())[0]
    assert got == pytest.approx([-pull / 4, pull / 8], abs=1e-12)


def test_sigmoid_norm_of_tokens_alone_is_dpo(worked):
    ones = torch.ones(1, 2, dtype=torch.int64)
    got = worked.value(sigmoid_norm, sigmoid_norm.Settings(beta=0.1), worked.pairs(lengths=ones))
    assert got == pytest.approx(worked.value(dpo, dpo.Settings()), abs=1e-12)


def test_flex_dpo_hand_worked(worked):
    """0.1 * 2 + 0.05 * 1 = 0.25: log(1 + e^-0.25) = 0.575939419878844; the likelihood: 10 nats over 4 tokens."""
    assert worked.value(flex_dpo, flex_dpo.Settings()) == pytest.approx(0.5759394198788436, abs=1e-12)
    assert worked.value(flex_dpo, flex_dpo.Settings(sft_weight=1.0)) == pytest.approx(3.0759394198788436, abs=1e-12)
    assert worked.at_reference(flex_dpo, flex_dpo.Settings()) == pytest.approx(LN2, abs=1e-12)
    pull = 1 / (1 + math.exp(0.25))
    assert worked.gradient(flex_dpo, flex_dpo.Settings())[0] == pytest.approx([-0.1 * pull, 0.05 * pull], abs=1e-12)


def test_flex_dpo_with_equal_betas_is_dpo_and_larger_ones_are_refused(worked):
    equal = flex_dpo.Settings(beta_chosen=0.1, beta_rejected=0.1)
    assert worked.value(flex_dpo, equal) == pytest.approx(worked.value(dpo, dpo.Settings()), abs=1e-12)
    problems = problems_of(flex_dpo.Settings, {"beta_chosen": 0.1, "beta_rejected": 0.2}, "objective")
    assert problems == ["objective.beta_rejected: 0.2 is out of range, expected 0 < x <= beta_chosen = 0.1"]


# --------------------------------------------------------------------------------------------------------- DiscoPOP


@pytest.mark.parametrize(("swap", "expected"), [(False, 0.8493375792893855), (True, 0.7894947400647003)])
def test_discopop_hand_worked(worked, swap, expected):
    """z = 0.05 * 3 = 0.15, g = s(3) = 0.952574: 0.047426 * 0.620957 + 0.952574 * 0.860708 = 0.849337579289386.

    Swapped, z = -0.15, g = 0.047426: 0.952574 * 0.770957 + 0.047426 * 1.161834 = 0.789494740064700.
    """
    batch = worked.pairs(worked.POLICY.flip(1), worked.REFERENCE.flip(1)) if swap else worked.pairs()
    assert worked.value(discopop, discopop.Settings(), batch) == pytest.approx(expected, abs=1e-12)


def test_discopop_gradient_flows_through_the_mixing(worked):
    def loss(chosen: float, rejected: float) -> float:
        return worked.value(discopop, discopop.Settings(), worked.pairs(worked.doubles([chosen, rejected])))

    got = worked.gradient(discopop, discopop.Settings())[0]
    assert got == pytest.approx(worked.slope(loss, -10.0, -20.0), abs=1e-8)


def test_discopop_at_the_reference(worked):
    """g = 1/2: (ln 2 + 1) / 2."""
    assert worked.at_reference(discopop, discopop.Settings()) == pytest.approx((LN2 + 1) / 2, abs=1e-12)


def test_discopop_far_out_is_logistic_where_ranked_badly_and_0_where_ranked_well(worked):
    """h = -4000 in float32: exp(200) overflows, the loss is beta 4000 = 200. h = 4000: e^-200."""
    four = torch.tensor([0.0, -2000.0])
    for sign, expected in ((-1, 200.0), (1, 0.0)):
        chosen, rejected = (four[0:1], four[1:2]) if sign > 0 else (four[1:2], four[0:1])
        losses = discopop.discopop_losses(chosen, rejected, rejected, chosen, 0.05, 0.05)
        assert losses.item() == pytest.approx(expected, abs=1e-4)


# ------------------------------------------------------------------------------------------------------------ f-DPO


@pytest.mark.parametrize(("divergence", "expected"), [
    ("reverse_kl", 0.5543552444685271), ("forward_kl", 0.5723162894492977), ("js", 0.6355887005576845),
    ("alpha", 0.5732434456754529),
])  # fmt: skip
def test_fdpo_hand_worked(worked, divergence, expected):
    """beta 0.1 and f'(a) - f'(b):

    forward (1 - e^-2) - (1 - e^1) = 2.582946545222446;  alpha 0.5: 2 (1 - e^-1) - 2 (1 - e^0.5) = 2.561683658...
    js log s(2) - log s(-1) = -0.126928... + 1.313261... = 1.186333676475551
    """
    assert worked.value(fdpo, fdpo.Settings(divergence=divergence)) == pytest.approx(expected, abs=1e-12)
    assert worked.at_reference(fdpo, fdpo.Settings(divergence=divergence)) == pytest.approx(LN2, abs=1e-12)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js", "alpha"])
def test_fdpo_gradient_against_differences(worked, divergence):
    def loss(chosen: float, rejected: float) -> float:
        batch = worked.pairs(worked.doubles([chosen, rejected]))
        return worked.value(fdpo, fdpo.Settings(divergence=divergence), batch)

    got = worked.gradient(fdpo, fdpo.Settings(divergence=divergence))[0]
    assert got == pytest.approx(worked.slope(loss, -10.0, -20.0), abs=1e-8)


def test_alpha_runs_from_reverse_to_forward_kl(worked):
    near = [worked.value(fdpo, fdpo.Settings(divergence="alpha", alpha=alpha)) for alpha in (1e-9, 1 - 1e-9)]
    ends = [worked.value(fdpo, fdpo.Settings(divergence=name)) for name in ("reverse_kl", "forward_kl")]
    assert near == pytest.approx(ends, abs=1e-7)


def test_clamped_sides_are_counted_and_give_no_gradient(worked):
    """The chosen completion lies 200 nats below the reference: f' = 1 - e^80 in float32 too, where e^200 is inf."""
    logps, zeros = torch.tensor([[-200.0, -100.0]]), torch.zeros(1, 2)
    for divergence, clamped in (("forward_kl", 2), ("alpha", 1), ("js", 0), ("reverse_kl", 0)):
        settings = fdpo.Settings(divergence=divergence)
        losses, metrics = fdpo.loss(worked.pairs(logps, zeros), settings)
        assert metrics["clamped"].item() == clamped
        assert losses.isfinite().all()
        pull = worked.gradient(fdpo, settings, logps, ref_logps=zeros)[0]
        assert (pull[0] == 0.0) == (clamped > 0)


# -------------------------------------------------------------------------------------------------------------- AOT


def test_aot_hand_worked(worked):
    """Two pairs with policy margins 10 and 2, reference margins 1 and 7; sorted (2, 10) and (1, 7): 1 and 3 nats.

    beta = 0.1: log(1 + e^-0.1) goes to the second group, whose margin is 2; log(1 + e^-0.3) to the first.
    """
    logps, ref = worked.doubles([-10.0, -20.0], [-5.0, -7.0]), worked.doubles([-12.0, -13.0], [-6.0, -13.0])
    losses, _ = aot.loss(worked.pairs(logps, ref), aot.Settings(beta=0.1))
    assert losses.tolist() == pytest.approx([softplus(-0.3), softplus(-0.1)], abs=1e-12)


def test_unpaired_aot_hand_worked(worked):
    """a = (2, 1), b = (-7, 6); sorted (1, 2) and (-7, 6): 8 to the second group, -4 to the first."""
    logps, ref = worked.doubles([-10.0, -20.0], [-5.0, -7.0]), worked.doubles([-12.0, -13.0], [-6.0, -13.0])
    losses, _ = aot.loss(worked.pairs(logps, ref), aot.Settings(beta=0.1, paired=False))
    assert losses.tolist() == pytest.approx([softplus(0.4), softplus(-0.8)], abs=1e-12)


def test_aot_of_one_pair_is_dpo_and_at_the_reference_costs_ln_2(worked):
    for paired in (True, False):
        settings = aot.Settings(beta=0.1, paired=paired, label_smoothing=0.1)
        assert worked.value(aot, settings) == pytest.approx(
            worked.value(dpo, dpo.Settings(beta=0.1, label_smoothing=0.1)), abs=1e-12)
    same = worked.doubles([-10.0, -20.0], [-5.0, -7.0], [-9.0, -1.0])
    losses, _ = aot.loss(worked.pairs(same, same.clone()), aot.Settings())
    assert losses.tolist() == pytest.approx([LN2] * 3, abs=1e-12)


def test_aot_does_not_sort_what_is_no_pair(worked):
    """The third group lacks its rejected answer: it takes no rank."""
    logps = worked.doubles([-10.0, -20.0], [-5.0, -7.0], [-1.0, float("nan")])
    ref = worked.doubles([-12.0, -13.0], [-6.0, -13.0], [-50.0, -60.0])
    present = torch.tensor([[True, True], [True, True], [True, False]])
    losses, _ = aot.loss(worked.pairs(logps, ref, present=present), aot.Settings(beta=0.1))
    assert losses.tolist() == pytest.approx([softplus(-0.3), softplus(-0.1), 0.0], abs=1e-12)
