"""EXO on rewards, worked by hand.

Log-ratios 4, 2, 0 and beta = 1/2 give r = (2, 1, 0); rewards 1, 0, 1/2 at beta_r = 1/2 give (2, 0, 1). Both softmaxes
have Z = e^2 + e + 1 = 11.107337927389695, so log q - log p = (0, 1, -1) and

    L = q_1 - q_2 = (e - 1) / Z = 0.154697897884417
"""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.objectives import exo, exo_rw
from tests.objectives.batches import batch_of, gradient

REFERENCE = torch.tensor([[-14.0, -22.0, -30.0]], dtype=torch.float64)
POLICY = REFERENCE + torch.tensor([[4.0, 2.0, 0.0]])
SCORES = torch.tensor([[1.0, 0.0, 0.5]], dtype=torch.float64)
EVERY = torch.ones(1, 3, dtype=torch.bool)


def value(policy: torch.Tensor, scores: torch.Tensor = SCORES) -> float:
    return exo_rw.exo_rw_losses(policy, REFERENCE, scores, EVERY, 0.5, 0.5).item()


def test_hand_worked_value() -> None:
    losses, metrics = exo_rw.loss(batch_of(POLICY, REFERENCE, scores=SCORES), exo_rw.Settings(0.5, 0.5))
    assert losses.item() == pytest.approx((math.e - 1) / 11.107337927389695, abs=1e-12)
    assert [metrics[k].item() for k in ("rewards_chosen", "rewards_rejected", "margin", "accuracy")] == [2, 0.5, 1.5, 1]


def test_policy_equal_to_reference() -> None:
    """q = 1/3: -ln 3 - mean log p, with log p = (2, 0, 1) - ln Z: ln Z - 1 - ln 3 = 0.308993675776270."""
    assert value(REFERENCE) == pytest.approx(0.308993675776270, abs=1e-12)


def test_zero_where_the_choice_is_the_rewards() -> None:
    assert value(REFERENCE + 2 * SCORES / 0.5 + 7.0) == pytest.approx(0.0, abs=1e-12)


def test_two_completions_are_exo_on_pairs() -> None:
    """p = softmax(R / beta_r) = (1 - eps, eps) at R = (logit(1 - eps) beta_r, 0)."""
    eps = 0.2
    scores = torch.tensor([[math.log((1 - eps) / eps), 0.0]], dtype=torch.float64)
    four = POLICY[:, 0], POLICY[:, 1], REFERENCE[:, 0], REFERENCE[:, 1]
    on_pairs = exo.exo_losses(*four, 0.3, (math.log(1 - eps), math.log(eps)))
    ours = exo_rw.exo_rw_losses(POLICY[:, :2], REFERENCE[:, :2], scores, EVERY[:, :2], 0.3, 1.0)
    assert ours.item() == pytest.approx(on_pairs.item(), abs=1e-12)


def test_gradient_flows_through_both_factors() -> None:
    """dL/dr_i = q_i (log q_i - log p_i - L), times beta."""
    found = gradient(lambda x: exo_rw.exo_rw_losses(x, REFERENCE, SCORES, EVERY, 0.5, 0.5), POLICY)
    q = torch.softmax(torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64), 0)
    expected = 0.5 * q * (torch.tensor([0.0, 1.0, -1.0]) - (math.e - 1) / 11.107337927389695)
    assert torch.allclose(found[0], expected, atol=1e-12)


def test_order_of_the_others_and_shifts_do_not_matter() -> None:
    order = torch.tensor([0, 2, 1])
    swapped = exo_rw.exo_rw_losses(POLICY[:, order], REFERENCE[:, order], SCORES[:, order], EVERY, 0.5, 0.5)
    assert swapped.item() == pytest.approx(value(POLICY), abs=1e-12)
    assert value(POLICY + 11, SCORES - 3) == pytest.approx(value(POLICY), abs=1e-12)


def test_extremes_and_absent_completions() -> None:
    """q on the worst answer alone: L -> -log p_worst = ln Z (the reward says 0) = 2.407605964444380."""
    logps = torch.tensor([[-2000.0, 0, -2000], [-1, -2, float("nan")], [-1, -2, -3]], dtype=torch.float64)
    present = [[True] * 3, [True, True, False], [False, True, True]]
    refs = torch.tensor([[-1000.0] * 3] * 3, dtype=torch.float64)
    batch = batch_of(logps, refs, present=present, scores=SCORES.expand(3, 3))
    losses, metrics = exo_rw.loss(batch, exo_rw.Settings(0.5, 0.5))
    assert losses[0].item() == pytest.approx(2.407605964444380, abs=1e-12)
    assert losses[1].isfinite() and losses[2] == 0 and metrics["margin"][2] == 0
    slope = gradient(lambda x: exo_rw.loss(batch_of(x, refs, present=present, scores=SCORES.expand(3, 3)),
                                           exo_rw.Settings())[0], logps)
    assert slope.isfinite().all() and (slope[2] == 0).all() and slope[1, 2] == 0
