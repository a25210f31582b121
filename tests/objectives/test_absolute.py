"""Losses that look at each answer's own log-ratio: EXO, NCA, APO, SPPO. The worked pair has a = 2, b = -1, h = 3."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.errors import UserError
from pipeline.objectives import apo_down, apo_zero, exo, nca_pair, sppo
from pipeline.objectives.contract import Needs

LN2 = math.log(2)


def s(z: float) -> float:
    return 1 / (1 + math.exp(-z))


# -------------------------------------------------------------------------------------------------------------- EXO


def test_exo_hand_worked(worked):
    """z = 1.5: 0.817574 (-0.201413 + 0.001001) + 0.182426 (-1.701413 + 6.907755) = 0.785917294938314.

    With the official energies: 0.817574 * -0.201413 + 0.182426 (-1.701413 + 10) = 1.349203674371276.
    """
    assert worked.value(exo, exo.Settings()) == pytest.approx(0.7859172949383137, abs=1e-12)
    assert worked.value(exo, exo.Settings(energies=True)) == pytest.approx(1.349203674371276, abs=1e-12)


@pytest.mark.parametrize("eps", [1e-3, 0.1, 0.4])
def test_exo_at_the_reference(worked, eps):
    """-ln 2 - (ln(1 - eps) + ln eps) / 2, for eps = 1e-3 2.761230709097915."""
    got = worked.at_reference(exo, exo.Settings(label_smoothing=eps))
    assert got == pytest.approx(-LN2 - (math.log(1 - eps) + math.log(eps)) / 2, abs=1e-12)


def test_exo_is_0_and_flat_where_the_policy_has_the_labels_odds(worked):
    """eps = 0.2, beta = 0.5: h = 2 ln 4."""
    at, zeros = worked.doubles([2 * math.log(4), 0.0]), worked.doubles([0.0, 0.0])
    settings = exo.Settings(label_smoothing=0.2)
    assert worked.value(exo, settings, worked.pairs(at, zeros)) == pytest.approx(0.0, abs=1e-15)
    assert worked.gradient(exo, settings, at, ref_logps=zeros)[0] == pytest.approx([0.0, 0.0], abs=1e-15)


def test_exo_gradient_flows_through_both_factors(worked):
    """dL/dz = q_w q_l (z - log((1 - eps)/eps)): the terms from log q alone cancel."""
    for settings in (exo.Settings(label_smoothing=0.1), exo.Settings(label_smoothing=0.1, energies=True)):
        goal = 10.0 if settings.energies else math.log(9)
        pull = 0.5 * s(1.5) * s(-1.5) * (1.5 - goal)
        assert worked.gradient(exo, settings)[0] == pytest.approx([pull, -pull], abs=1e-12)


def test_exo_cannot_repair_badly_ranked_pairs(worked):
    """h = -200, z = -100: the loss is that of the sure wrong choice, -log eps, and its gradient about 1e-41."""
    at, zeros = worked.doubles([-200.0, 0.0]), worked.doubles([0.0, 0.0])
    losses, metrics = exo.loss(worked.pairs(at, zeros), exo.Settings())
    assert losses.item() == pytest.approx(-math.log(1e-3), abs=1e-9)
    assert metrics["vanishing"].item() == 1.0
    assert abs(worked.gradient(exo, exo.Settings(), at, ref_logps=zeros)[0][0]) < 1e-40


# -------------------------------------------------------------------------------------------------------------- NCA


def test_nca_hand_worked(worked):
    """beta 0.1, r = 0.2 and -0.1: 0.598139 + 0.798139 / 2 + 0.644397 / 2 = 1.319406634109173; at the start 2 ln 2."""
    assert worked.value(nca_pair, nca_pair.Settings(beta=0.1)) == pytest.approx(1.319406634109173, abs=1e-12)
    assert worked.at_reference(nca_pair, nca_pair.Settings()) == pytest.approx(2 * LN2, abs=1e-12)


def test_nca_gradient_and_its_optimum(worked):
    """dL/dr_w = -s(-r_w) + s(r_w) / 2, which is 0 at r_w = ln 2; dL/dr_l = s(r_l) / 2."""
    got = worked.gradient(nca_pair, nca_pair.Settings(beta=0.1))[0]
    assert got == pytest.approx([0.1 * (-s(-0.2) + s(0.2) / 2), 0.1 * s(-0.1) / 2], abs=1e-12)
    at = worked.doubles([10 * LN2, -5000.0])
    flat = worked.gradient(nca_pair, nca_pair.Settings(beta=0.1), at, ref_logps=worked.doubles([0.0, 0.0]))[0]
    assert flat == pytest.approx([0.0, 0.0], abs=1e-15)


# -------------------------------------------------------------------------------------------------------------- APO


def test_apo_hand_worked(worked):
    """zero: s(-0.2) + s(-0.1) = 0.925186815208582; down: s(0.2) + s(-0.3) = 0.975391480500819; at the start 1."""
    assert worked.value(apo_zero, apo_zero.Settings()) == pytest.approx(0.9251868152085821, abs=1e-12)
    assert worked.value(apo_down, apo_down.Settings()) == pytest.approx(0.9753914805008189, abs=1e-12)
    for module in (apo_zero, apo_down):
        assert worked.at_reference(module, module.Settings()) == pytest.approx(1.0, abs=1e-12)


def test_apo_gradients(worked):
    """zero raises the chosen and lowers the rejected; down lowers the chosen, and at the reference leaves it in place:

    dL/da = 0.1 (s'(0.2) - s'(0.3)), dL/db = 0.1 s'(0.3); at h = a = 0 the two terms of a cancel.
    """
    slope = {z: s(z) * s(-z) for z in (0.1, 0.2, 0.3)}
    zero = worked.gradient(apo_zero, apo_zero.Settings())[0]
    assert zero == pytest.approx([-0.1 * slope[0.2], 0.1 * slope[0.1]], abs=1e-12)
    down = worked.gradient(apo_down, apo_down.Settings())[0]
    assert down == pytest.approx([0.1 * (slope[0.2] - slope[0.3]), 0.1 * slope[0.3]], abs=1e-12)
    start = worked.gradient(apo_down, apo_down.Settings(), worked.REFERENCE)[0]
    assert start == pytest.approx([0.0, 0.025], abs=1e-12)


def test_apo_saturates(worked):
    """a = 2000, b = -2000: zero costs 0; a = -2000, b = 2000: it costs 2. No gradient on either side."""
    zeros = worked.doubles([0.0, 0.0])
    for a, cost in ((2000.0, 0.0), (-2000.0, 2.0)):
        at = worked.doubles([a, -a])
        assert worked.value(apo_zero, apo_zero.Settings(), worked.pairs(at, zeros)) == pytest.approx(cost, abs=1e-12)
        pull = worked.gradient(apo_zero, apo_zero.Settings(), at, ref_logps=zeros)[0]
        assert pull == pytest.approx([0.0, 0.0], abs=1e-12)


# ------------------------------------------------------------------------------------------------------------- SPPO


def test_sppo_hand_worked(worked):
    """beta 0.1. hard: (2 - 5)^2 + (-1 + 5)^2 = 25.

    soft with win rates 0.8 and 0.3: targets 3 and -2: (1 + 1) / 2 = 1.
    single with rewards that differ by ln 4, p = 0.8: targets 3 and -3: (1 + 4) / 2 = 2.5.
    """
    assert worked.value(sppo, sppo.Settings(beta=0.1)) == pytest.approx(25.0, abs=1e-12)
    soft = worked.pairs(scores=worked.doubles([0.8, 0.3]))
    assert worked.value(sppo, sppo.Settings(beta=0.1, labels="soft"), soft) == pytest.approx(1.0, abs=1e-12)
    rewards = worked.pairs(scores=worked.doubles([math.log(8), math.log(2)]))
    assert worked.value(sppo, sppo.Settings(beta=0.1, labels="single"), rewards) == pytest.approx(2.5, abs=1e-12)


def test_hard_sppo_at_the_previous_policy(worked):
    """2 (1 / (2 beta))^2 = 0.5 / beta^2; the paper's beta makes targets of 500 nats and a loss of 500,000."""
    assert worked.at_reference(sppo, sppo.Settings()) == pytest.approx(500_000.0, abs=1e-6)
    assert worked.at_reference(sppo, sppo.Settings(beta=0.5)) == pytest.approx(2.0, abs=1e-12)


def test_sppo_gradients(worked):
    """hard 2 (a - 5), 2 (b + 5); soft half of that, (a - 3), (b + 2)."""
    assert worked.gradient(sppo, sppo.Settings(beta=0.1))[0] == pytest.approx([-6.0, 8.0], abs=1e-12)
    scores = worked.doubles([0.8, 0.3]).requires_grad_()
    soft = worked.gradient(sppo, sppo.Settings(beta=0.1, labels="soft"), scores=scores)[0]
    assert soft == pytest.approx([-1.0, 1.0], abs=1e-12)
    assert scores.grad is None


def test_soft_labels_of_certainty_are_half_the_hard_loss(worked):
    batch = worked.pairs(scores=worked.doubles([1.0, 0.0]))
    soft = worked.value(sppo, sppo.Settings(beta=0.1, labels="soft"), batch)
    assert 2 * soft == pytest.approx(worked.value(sppo, sppo.Settings(beta=0.1)), abs=1e-12)


def test_sppo_takes_the_previous_policy_unless_told(worked):
    moved = worked.pairs(previous_logps=worked.POLICY)
    assert worked.value(sppo, sppo.Settings(beta=0.1), moved) == pytest.approx(50.0, abs=1e-12)
    assert worked.value(sppo, sppo.Settings(beta=0.1, against="reference"), moved) == pytest.approx(25.0, abs=1e-12)
    assert sppo.needs(sppo.Settings()) == Needs(pairs=True, previous=True)
    needs = Needs(pairs=True, reference=True, scores=True, score="win_rate")
    assert sppo.needs(sppo.Settings(labels="soft", against="reference")) == needs


def test_rewards_are_no_win_rates(worked):
    with pytest.raises(UserError, match=r"found -1, expected 0 <= x <= 1"):
        sppo.loss(worked.pairs(scores=worked.doubles([0.5, -1.0])), sppo.Settings(labels="soft"))


def test_missing_previous_policy_is_an_error(worked):
    with pytest.raises(ValueError, match="previous_logps"):
        sppo.loss(worked.pairs(previous_logps=None), sppo.Settings())


def test_plain_tensors_of_any_shape(worked):
    """The pure functions work on whatever shape the four share."""
    four = [v.reshape(1, 1).expand(2, 3) for v in worked.FOUR]
    assert torch.equal(apo_zero.apo_zero_losses(*four, 0.1), apo_zero.apo_zero_losses(*worked.FOUR, 0.1).expand(2, 3))
