"""rDPO, SPCE and UPO: DPO for labels that are not certain. The worked pair has z = beta h = 0.3, where

    -log s(z) = 0.554355244468527   and   -log s(-z) = 0.854355244468527 (0.3 more)
"""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.errors import UserError
from pipeline.objectives import dpo, rdpo, spce, upo
from pipeline.objectives.contract import Needs

SOFTPLUS = 0.554355244468527


# ------------------------------------------------------------------------------------------------------------- rDPO


def test_rdpo_hand_worked(worked):
    """(0.9 * 0.554355... - 0.1 * 0.854355...) / 0.8 = 0.554355... - 0.1 * 0.3 / 0.8 = 0.516855244468527."""
    got = worked.value(rdpo, rdpo.Settings(beta=0.1, label_smoothing=0.1))
    assert got == pytest.approx(SOFTPLUS - 0.0375, abs=1e-12)


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.4])
def test_rdpo_at_the_reference_costs_ln_2(worked, eps):
    assert worked.at_reference(rdpo, rdpo.Settings(label_smoothing=eps)) == pytest.approx(math.log(2), abs=1e-12)


def test_rdpo_is_unbounded_below_with_a_constant_pull(worked):
    """beta = 1, eps = 0.1, h = 1000: -eps h / (1 - 2 eps) = -125, and dL/dlogp(y_w) = -0.125."""
    far = worked.doubles([0.0, -1000.0])
    settings = rdpo.Settings(beta=1.0, label_smoothing=0.1)
    zeros = worked.doubles([0.0, 0.0])
    assert worked.value(rdpo, settings, worked.pairs(far, zeros)) == pytest.approx(-125.0, abs=1e-9)
    assert worked.gradient(rdpo, settings, far, ref_logps=zeros)[0] == pytest.approx([-0.125, 0.125], abs=1e-12)


def test_rdpo_without_noise_is_dpo(worked):
    ours, theirs = worked.value(rdpo, rdpo.Settings(label_smoothing=0.0)), worked.value(dpo, dpo.Settings())
    assert ours == pytest.approx(theirs, abs=1e-12)


def test_rdpo_is_unbiased_for_the_clean_loss(worked):
    """(1 - eps) L(h) + eps L(-h), the mean over flips, is DPO's loss at h."""
    kept = worked.value(rdpo, rdpo.Settings(label_smoothing=0.2))
    flipped = worked.value(rdpo, rdpo.Settings(label_smoothing=0.2),
                           worked.pairs(worked.POLICY.flip(1), worked.REFERENCE.flip(1)))
    assert 0.8 * kept + 0.2 * flipped == pytest.approx(worked.value(dpo, dpo.Settings()), abs=1e-12)


# ------------------------------------------------------------------------------------------------------------- SPCE


@pytest.mark.parametrize(("labels", "scores", "p"), [
    ("rewards", [math.log(7.0), math.log(3.0)], 0.7),
    ("win_rates", [0.8, 0.6], 8 / 11),  # odds 4 and 1.5: 4 / (4 + 1.5)
    ("win_rates", [1.0, 1.0], 0.5),  # certain against certain is a tie
    ("win_rates", [1.0, 0.3], 1 - 1e-4),  # clipped
    ("probability", [0.7, 0.3], 0.7),
])  # fmt: skip
def test_spce_hand_worked(worked, labels, scores, p):
    """-p log s(z) - (1 - p) log s(-z) = 0.554355... + (1 - p) 0.3; for p = 0.7 it is 0.644355244468527."""
    batch = worked.pairs(scores=worked.doubles(scores))
    losses, metrics = spce.loss(batch, spce.Settings(labels=labels))
    assert losses.item() == pytest.approx(SOFTPLUS + (1 - p) * 0.3, abs=1e-12)
    assert metrics["label"].item() == pytest.approx(p, abs=2e-4)


def test_spce_at_the_reference_costs_ln_2_whatever_the_label(worked):
    for scores in ([3.0, 1.0], [0.0, 9.0]):
        got = worked.at_reference(spce, spce.Settings(), scores=worked.doubles(scores))
        assert got == pytest.approx(math.log(2), abs=1e-12)


def test_spce_is_flat_at_the_logit_of_its_label(worked):
    """p = 0.8, beta = 0.1: h = 10 ln 4."""
    at = worked.doubles([10 * math.log(4), 0.0])
    settings = spce.Settings(labels="probability")
    got = worked.gradient(spce, settings, at, ref_logps=worked.doubles([0.0, 0.0]), scores=worked.doubles([0.8, 0.2]))
    assert got[0] == pytest.approx([0.0, 0.0], abs=1e-12)


def test_spce_is_cdpo_with_a_label_per_pair(worked):
    soft = spce.spce_losses(*worked.FOUR, torch.tensor([0.9], dtype=torch.float64), 0.1)
    assert soft.item() == pytest.approx(dpo.dpo_losses(*worked.FOUR, 0.1, 0.1).item(), abs=1e-12)


def test_spce_sends_no_gradient_into_the_scores(worked):
    scores = worked.doubles([2.0, 1.0]).requires_grad_()
    leaf = worked.POLICY.clone().requires_grad_()
    spce.loss(worked.pairs(leaf, scores=scores), spce.Settings())[0].sum().backward()
    assert scores.grad is None


def test_scores_that_are_no_probabilities_are_refused(worked):
    for labels in ("win_rates", "probability"):
        with pytest.raises(UserError, match=r"found 7, expected 0 <= x <= 1"):
            spce.loss(worked.pairs(scores=worked.doubles([7.0, 0.5])), spce.Settings(labels=labels))


# -------------------------------------------------------------------------------------------------------------- UPO


@pytest.mark.parametrize(("labels", "score", "alpha"), [
    ("uncertainty", 0.0, 0.0), ("uncertainty", math.log(2) / 2, 0.25), ("uncertainty", math.log(2), 0.5),
    ("printed", 0.25, 0.8), ("printed", 1.0, 0.5),
])  # fmt: skip
def test_upo_hand_worked(worked, labels, score, alpha):
    """0.554355... + alpha 0.3, and the chosen answer's 10 nats over 4 tokens: + 2.5."""
    batch = worked.pairs(scores=worked.doubles([score, 0.0]))
    losses, metrics = upo.loss(batch, upo.Settings(labels=labels))
    assert losses.item() == pytest.approx(SOFTPLUS + 0.3 * alpha + 2.5, abs=1e-12)
    assert metrics["flip"].item() == pytest.approx(alpha, abs=1e-12)


def test_upo_of_a_certain_pair_without_likelihood_is_dpo(worked):
    batch = worked.pairs(scores=worked.doubles([0.0, 0.0]))
    assert worked.value(upo, upo.Settings(sft_weight=0.0), batch) == pytest.approx(SOFTPLUS, abs=1e-12)


def test_upo_at_the_previous_policy_costs_ln_2_and_the_likelihood(worked):
    """log pi(y_w) = -12 over 4 tokens: + 3."""
    got = worked.at_reference(upo, upo.Settings(), scores=worked.doubles([0.3, 0.0]))
    assert got == pytest.approx(math.log(2) + 3.0, abs=1e-12)


def test_upo_takes_the_previous_policy_and_not_the_reference(worked):
    elsewhere = worked.pairs(scores=worked.doubles([0.0, 0.0]), previous_logps=worked.POLICY)
    settings = {name: upo.Settings(sft_weight=0.0, against=name) for name in ("previous", "reference")}
    assert worked.value(upo, settings["previous"], elsewhere) == pytest.approx(math.log(2), abs=1e-12)
    assert worked.value(upo, settings["reference"], elsewhere) == pytest.approx(SOFTPLUS, abs=1e-12)
    needs = Needs(previous=True, pairs=True, scores=True, score="information_gain")
    assert upo.needs(settings["previous"]) == needs
    assert upo.needs(upo.Settings(labels="printed")).score == "sampling_share"


def test_upo_refuses_what_is_no_information_gain(worked):
    with pytest.raises(UserError, match=r"information gain in nats, found 0\.9"):
        upo.loss(worked.pairs(scores=worked.doubles([0.9, 0.0])), upo.Settings())
