"""TDPO, worked by hand on two-token vocabularies.

One token each. Chosen: pi = (1/2, 1/2), ref = (1/4, 3/4), token 0: log-ratio ln 2, KL(ref || pi) = 1/4 ln(1/2) +
3/4 ln(3/2) = 0.130812035941137. Rejected: pi = ref = (1/2, 1/2): 0 and 0. So u = ln 2 and delta = 0 - 0.1308 = -0.1308:

    TDPO-1: -log s(beta (ln 2 + 0.130812035941137))
    TDPO-2: -log s(beta (ln 2 + alpha 0.130812035941137))
"""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.lm.head import Plan, reductions
from pipeline.objectives import dpo, tdpo
from pipeline.objectives.contract import LossInputs
from tests.objectives.batches import batch_of, gradient, token_batch

POLICY = torch.tensor([[0.5, 0.5], [0.5, 0.5]], dtype=torch.float64).log()
REFERENCE = torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=torch.float64).log()
KL = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)


def batch(logits: torch.Tensor = POLICY, ref_logits: torch.Tensor = REFERENCE) -> LossInputs:
    return token_batch(logits, ref_logits, [0, 0], [0, 0], [0, 1])


@pytest.mark.parametrize(("version", "weight"), [(1, 1.0), (2, 0.5)])
def test_hand_worked_value(version: int, weight: float) -> None:
    losses, metrics = tdpo.loss(batch(), tdpo.Settings(0.3, version, 0.5))
    assert losses.item() == pytest.approx(math.log1p(math.exp(-0.3 * (math.log(2) + weight * KL))), abs=1e-12)
    assert metrics["divergence_chosen"].item() == pytest.approx(KL)
    assert metrics["margin"].item() == pytest.approx(0.3 * (math.log(2) + KL))


@pytest.mark.parametrize("version", [1, 2])
def test_policy_equal_to_reference(version: int) -> None:
    losses, _ = tdpo.loss(batch(REFERENCE), tdpo.Settings(version=version))
    assert losses.item() == pytest.approx(math.log(2), abs=1e-12)


def test_logits_may_be_shifted() -> None:
    shifted = tdpo.loss(batch(POLICY + 3, REFERENCE - 5), tdpo.Settings())[0].item()
    assert shifted == pytest.approx(tdpo.loss(batch(), tdpo.Settings())[0].item(), abs=1e-12)


def test_without_divergences_it_is_dpo() -> None:
    logps = torch.tensor([[-4.0, -9.0]], dtype=torch.float64), torch.tensor([[-6.0, -7.0]], dtype=torch.float64)
    ratios, nothing = logps[0] - logps[1], torch.zeros(1, dtype=torch.float64)
    ours = tdpo.tdpo_losses(ratios[:, 0], ratios[:, 1], nothing, nothing, 0.2)
    assert ours.item() == pytest.approx(dpo.loss(batch_of(*logps), dpo.Settings(0.2))[0].item(), abs=1e-12)


def test_version_2_sends_no_gradient_through_the_chosen_divergence() -> None:
    """dL/du_w = -beta s(-z); dL/dD_w = -beta s(-z) in version 1 and 0 in version 2; dL/dD_l = beta alpha s(-z)."""
    at = torch.tensor([0.3, -0.2, 0.1, 0.4], dtype=torch.float64)
    for version, factors in ((1, (-1, 1, -1, 1)), (2, (-1, 1, 0, 0.5))):
        found = gradient(lambda x, v=version: tdpo.tdpo_losses(x[0], x[1], x[2], x[3], 0.7, v, 0.5), at)
        z = 0.7 * (0.5 - (1.0 if version == 1 else 0.5) * 0.3)
        assert found.tolist() == pytest.approx([0.7 / (1 + math.exp(z)) * f for f in factors], abs=1e-12)


def test_divergence_gradient_is_policy_minus_reference() -> None:
    """d KL(ref || pi) / d logits = pi - ref; tokens without probability in the reference do not disturb it."""
    ref = torch.tensor([[0.25, 0.75, 0.0]], dtype=torch.float64).log()
    logits = torch.tensor([[0.0, 0.0, float("-inf")]], dtype=torch.float64)

    def divergences(x: torch.Tensor) -> torch.Tensor:
        found = reductions(x, torch.tensor([0]), Plan(1, 1), ref).divergences
        assert found is not None
        return found

    assert divergences(logits).item() == pytest.approx(KL, abs=1e-12)
    assert gradient(divergences, logits)[0].tolist() == pytest.approx([0.25, -0.25, 0])


def test_extremes_are_finite() -> None:
    logits = torch.tensor([[2000.0, 0.0], [0.0, 2000.0]])
    slope = gradient(lambda x: tdpo.loss(batch(x, -logits), tdpo.Settings())[0], logits)
    assert tdpo.loss(batch(logits, -logits), tdpo.Settings())[0].isfinite().all() and slope.isfinite().all()
    assert tdpo.loss(batch(POLICY.half(), REFERENCE.half()), tdpo.Settings())[0].dtype == torch.float32


def test_needs_the_reference_logits() -> None:
    with pytest.raises(ValueError, match="tokens"):
        tdpo.loss(batch_of([[-1.0, -2.0]]), tdpo.Settings())
