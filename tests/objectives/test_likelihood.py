"""DPO that keeps the chosen answer likely (DPOP, RPO) and D2O. The worked pair: a = 2, b = -1, log pi(y_w) = -10."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.objectives import d2o, dpo, dpop, rpo

LN2 = math.log(2)
SOFTPLUS = 0.5543552444685271  # log(1 + e^-0.3)


# ------------------------------------------------------------------------------------------------------------- DPOP


def test_dpop_hand_worked(worked):
    """beta 0.1, lambda 5. a = 2 >= 0: no penalty, DPO's log(1 + e^-0.3).

    With log ref(y_w) = -8: a = -2, z = 0.1 (-2 + 1 - 5 * 2) = -1.1: log(1 + e^1.1) = 1.387335325115431.
    """
    settings = dpop.Settings(beta=0.1, penalty=5.0)
    assert worked.value(dpop, settings) == pytest.approx(SOFTPLUS, abs=1e-12)
    violated = worked.pairs(ref_logps=worked.doubles([-8.0, -19.0]))
    losses, metrics = dpop.loss(violated, settings)
    assert losses.item() == pytest.approx(1.387335325115431, abs=1e-12)
    assert metrics["rewards_chosen"].item() == pytest.approx(-1.2)  # 0.1 (-2 - 10)
    assert metrics["violated"].item() == 1.0


def test_dpop_gradient_on_a_violated_pair_is_1_plus_lambda(worked):
    """dL/dlogp(y_w) = -beta (1 + lambda) s(1.1), dL/dlogp(y_l) = beta s(1.1)."""
    settings = dpop.Settings(beta=0.1, penalty=5.0)
    got = worked.gradient(dpop, settings, ref_logps=worked.doubles([-8.0, -19.0]))[0]
    pull = 0.1 / (1 + math.exp(-1.1))
    assert got == pytest.approx([-6 * pull, pull], abs=1e-12)


def test_dpop_starts_as_dpo(worked):
    """At the reference, the kink, the penalty has no gradient: -beta / 2 and beta / 2 with beta = 0.3."""
    assert worked.at_reference(dpop, dpop.Settings()) == pytest.approx(LN2, abs=1e-12)
    assert worked.gradient(dpop, dpop.Settings(), worked.REFERENCE)[0] == pytest.approx([-0.15, 0.15], abs=1e-12)
    plain = worked.value(dpop, dpop.Settings(beta=0.1, penalty=0.0))
    assert plain == pytest.approx(worked.value(dpo, dpo.Settings()), abs=1e-12)


def test_dpop_ten_nats_below_the_reference(worked):
    """beta lambda 10 = 150, and beta 10 = 3 of DPO's own: 153."""
    batch = worked.pairs(worked.doubles([-10.0, 0.0]), worked.doubles([0.0, 0.0]))
    assert worked.value(dpop, dpop.Settings(), batch) == pytest.approx(153.0, abs=1e-9)


# -------------------------------------------------------------------------------------------------------------- RPO


@pytest.mark.parametrize(("normalise", "extra"), [("sum", 0.5), ("mean", 1.25), ("batch", 1.0)])
def test_rpo_hand_worked(worked, normalise, extra):
    """beta 0.1, eta 0.5: 0.554355... + 0.05 * 10 | 0.5 * 10 / 4 tokens | 0.5 * 10 / 5, the batch's mean length."""
    settings = rpo.Settings(beta=0.1, eta=0.5, sft_normalise=normalise)
    batch = worked.pairs(mean_chosen_length=5.0)
    assert worked.value(rpo, settings, batch) == pytest.approx(SOFTPLUS + extra, abs=1e-12)


def test_rpo_defaults_are_the_papers(worked):
    """beta 0.01, eta 0.005, log(1 + e^-0.03) = 0.678259674440192 and 5e-5 * 10."""
    expected = math.log1p(math.exp(-0.03)) + 0.0005
    assert worked.value(rpo, rpo.Settings()) == pytest.approx(expected, abs=1e-12)
    got = worked.gradient(rpo, rpo.Settings())[0]
    pull = 0.01 / (1 + math.exp(0.03))
    assert got == pytest.approx([-pull - 5e-5, pull], abs=1e-12)


def test_rpo_without_likelihood_is_dpo(worked):
    assert worked.value(rpo, rpo.Settings(beta=0.1, eta=0.0)) == pytest.approx(SOFTPLUS, abs=1e-12)


def test_the_batch_form_averages_over_tokens(worked):
    """Two pairs with 10 nats over 4 tokens and 30 over 12: the mean over groups is 40 nats over 16 tokens."""
    logps = worked.doubles([-10.0, -20.0], [-30.0, -20.0])
    batch = worked.pairs(logps, logps.clone(), lengths=torch.tensor([[4, 8], [12, 8]]), mean_chosen_length=8.0)
    losses, _ = rpo.loss(batch, rpo.Settings(eta=1.0, sft_normalise="batch"))
    assert losses.mean().item() == pytest.approx(LN2 + 40 / 16, abs=1e-12)


# -------------------------------------------------------------------------------------------------------------- D2O


def test_d2o_hand_worked(worked):
    """Own samples (columns 0 and 2) with log-ratios 2 and 4, the negative (column 1) -1; beta 0.1, alpha 0.2:

    0.1 * 3 + 0.2 * 1 = 0.5: log(1 + e^-0.5) = 0.474076984180107.
    """
    zeros = worked.doubles([0.0, 0.0, 0.0])
    batch = worked.pairs(worked.doubles([2.0, -1.0, 4.0]), zeros)
    losses, metrics = d2o.loss(batch, d2o.Settings(beta=0.1, alpha=0.2))
    assert losses.item() == pytest.approx(0.4740769841801067, abs=1e-12)
    assert metrics["own_samples"].item() == 2.0
    assert metrics["rewards_chosen"].item() == pytest.approx(0.3)
    assert metrics["rewards_rejected"].item() == pytest.approx(-0.2)


def test_d2o_gradient_goes_to_all_sequences(worked):
    """-(beta / K) s(-0.5) to each own sample, alpha s(-0.5) to the negative."""
    pull = 1 / (1 + math.exp(0.5))
    got = worked.gradient(d2o, d2o.Settings(beta=0.1, alpha=0.2), worked.doubles([2.0, -1.0, 4.0]),
                          ref_logps=worked.doubles([0.0, 0.0, 0.0]))[0]
    assert got == pytest.approx([-0.05 * pull, 0.2 * pull, -0.05 * pull], abs=1e-12)


def test_d2o_with_one_own_sample_is_dpo(worked):
    assert worked.value(d2o, d2o.Settings()) == pytest.approx(worked.value(dpo, dpo.Settings()), abs=1e-12)
    assert worked.at_reference(d2o, d2o.Settings()) == pytest.approx(LN2, abs=1e-12)


def test_d2o_without_its_negative_has_no_loss(worked):
    """Column 1 is absent: columns 0 and 2 are both own samples, none of them is taken for the negative."""
    batch = worked.pairs(worked.doubles([2.0, -1.0, 4.0]), worked.doubles([0.0, 0.0, 0.0]),
                         present=torch.tensor([[True, False, True]]))
    losses, metrics = d2o.loss(batch, d2o.Settings())
    assert losses.item() == 0.0
    assert metrics["own_samples"].item() == 0.0
