"""InfoNCA and NCA on rewards, worked by hand.

r = (2, 1, 0) as in test_exo_rw; rewards 1, 0, 1/2 at alpha = 1/2 give labels t = softmax(2, 0, 1) = (e^2, 1, e) / Z
with Z = 11.107337927389695. With log q = r - ln Z:

    InfoNCA = ln Z - (2 e^2 + 1) / Z = 2.407605964444380 - 15.778112197861301 / Z = 0.987093479724355
    NCA     = (e^2 f(-2) + f(-1) + e ln 2) / Z + (f(2) + f(1) + ln 2) / 3,   f(x) = ln(1 + e^x)
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pipeline.objectives import dpo, exo_rw, infonca, nca, nca_pair
from pipeline.objectives.contract import LossInputs
from pipeline.objectives.shared.lists import soft_labels
from tests.objectives.batches import batch_of, gradient

REFERENCE = torch.tensor([[-14.0, -22.0, -30.0]], dtype=torch.float64)
POLICY = REFERENCE + torch.tensor([[4.0, 2.0, 0.0]])
SCORES = torch.tensor([[1.0, 0.0, 0.5]], dtype=torch.float64)
EVERY = torch.ones(1, 3, dtype=torch.bool)
Z = 11.107337927389695
LABELS = torch.tensor([[math.exp(2), 1.0, math.e]], dtype=torch.float64) / Z


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def batch(policy: torch.Tensor = POLICY, reference: torch.Tensor = REFERENCE) -> LossInputs:
    return batch_of(policy, reference, scores=SCORES[:, : policy.shape[1]])


def test_hand_worked_values() -> None:
    soft = infonca.loss(batch(), infonca.Settings(0.5, 0.5))[0].item()
    assert soft == pytest.approx(0.987093479724355, abs=1e-12)
    each, metrics = nca.loss(batch(), nca.Settings(0.5, 0.5))
    attract = (math.exp(2) * softplus(-2) + softplus(-1) + math.e * softplus(0)) / Z
    expected = attract + (softplus(2) + softplus(1) + softplus(0)) / 3
    assert each.item() == pytest.approx(expected, abs=1e-12)
    assert metrics["margin"].item() == 1.5 and metrics["accuracy"].item() == 1.0


def test_policy_equal_to_reference() -> None:
    """ln K and 2 ln 2, whatever the rewards are."""
    assert infonca.loss(batch(REFERENCE), infonca.Settings())[0].item() == pytest.approx(math.log(3), abs=1e-12)
    assert nca.loss(batch(REFERENCE), nca.Settings())[0].item() == pytest.approx(2 * math.log(2), abs=1e-12)


def test_one_hot_pairs_are_dpo_and_nca_on_pairs() -> None:
    """alpha = 1e-4 and a reward gap of 1: the other label is e^-10000 = 0."""
    pair = batch(POLICY[:, :2], REFERENCE[:, :2])
    assert infonca.loss(pair, infonca.Settings(0.1, 1e-4))[0].item() == pytest.approx(
        dpo.loss(pair, dpo.Settings(0.1))[0].item(), abs=1e-12)
    assert nca.loss(pair, nca.Settings(0.1, 1e-4))[0].item() == pytest.approx(
        nca_pair.loss(pair, nca_pair.Settings(0.1))[0].item(), abs=1e-12)


def test_infonca_and_exo_are_the_two_directions_of_one_divergence() -> None:
    """Cross-entropy minus the labels' entropy is KL(p || q): 0 where EXO's KL(q || p) is 0."""
    fitted = REFERENCE + 2 * SCORES / 0.5
    entropy = -(LABELS * LABELS.log()).sum().item()
    assert infonca.loss(batch(fitted), infonca.Settings(0.5, 0.5))[0].item() == pytest.approx(entropy, abs=1e-12)
    assert exo_rw.loss(batch(fitted), exo_rw.Settings(0.5, 0.5))[0].item() == pytest.approx(0, abs=1e-12)


def test_gradients() -> None:
    """InfoNCA: beta (q - t). NCA: beta (s(r)/K - t s(-r)), which for large r_w turns positive: 1/K."""
    r = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
    found = gradient(lambda x: infonca.loss(batch(x), infonca.Settings(0.5, 0.5))[0], POLICY)
    assert torch.allclose(found, 0.5 * (r.softmax(1) - LABELS), atol=1e-12)
    found = gradient(lambda x: nca.loss(batch(x), nca.Settings(0.5, 0.5))[0], POLICY)
    assert torch.allclose(found, 0.5 * (r.sigmoid() / 3 - LABELS * (-r).sigmoid()), atol=1e-12)
    far = gradient(lambda x: nca.loss(batch(x), nca.Settings(0.5, 0.5))[0], REFERENCE + 500)
    assert torch.allclose(far, torch.full_like(far, 0.5 / 3), atol=1e-12)


def test_first_bonus_breaks_ties() -> None:
    """Equal rewards, alpha = 0.01, bonus 0.01: labels softmax(1, 0), so at the reference the gradient is q - t."""
    pair = batch_of(POLICY[:, :2] * 0, POLICY[:, :2] * 0, scores=[[3.0, 3.0]])
    found = infonca.loss(pair, infonca.Settings(1.0, 0.01, 0.01))[0].item()
    assert found == pytest.approx(math.log(2), abs=1e-12)
    raised = infonca.with_bonus(torch.tensor([[3.0, 3.0]], dtype=torch.float64), 0.01)
    labels = soft_labels(raised, EVERY[:, :2], 0.01)[0]
    assert labels[0, 0].item() == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-9)


@pytest.mark.parametrize("module", [infonca, nca])
def test_order_padding_and_precision(module: Any) -> None:
    order, settings = torch.tensor([0, 2, 1]), module.Settings(0.5, 0.5)
    plain = module.loss(batch(), settings)[0].item()
    swapped = batch_of(POLICY[:, order], REFERENCE[:, order], scores=SCORES[:, order])
    assert module.loss(swapped, settings)[0].item() == pytest.approx(plain, abs=1e-12)
    wide = [torch.nn.functional.pad(x, (0, 2), value=float("nan")) for x in (POLICY, REFERENCE, SCORES)]
    padded = batch_of(wide[0], wide[1], scores=wide[2], present=[[True] * 3 + [False] * 2])
    assert module.loss(padded, settings)[0].item() == pytest.approx(plain, abs=1e-12)
    half = module.loss(batch_of(POLICY.half(), REFERENCE.half(), scores=SCORES.half()), settings)[0]
    assert half.dtype == torch.float32 and half.item() == pytest.approx(plain, abs=1e-6)
