"""INPO, worked by hand and on a game.

eta = 1/4, tau = 1/8 (pull 1/2): policy margin 6, reference margin 2, pi_t margin 1: h = 6 - 1 - 1/2 = 4.5, target 2,
L = 2.5^2 = 6.25.
"""

from __future__ import annotations

import pytest
import torch

from pipeline.config import build, problems_of
from pipeline.objectives import inpo
from pipeline.objectives.inpo import Settings, inpo_losses
from tests.objectives.batches import batch_of, gradient

BATCH = batch_of([[-10.0, -16.0]], [[-12.0, -14.0]], previous=[[-11.0, -12.0]])


def test_hand_worked_value() -> None:
    losses, metrics = inpo.loss(BATCH, Settings(0.25, 0.125))
    assert losses.item() == pytest.approx(6.25, abs=1e-12)
    assert metrics["margin"].item() == pytest.approx(0.25 * 4.5)


@pytest.mark.parametrize("eta", [0.005, 0.1])
def test_three_equal_models(eta: float) -> None:
    """1/(4 eta^2)."""
    logps = [[-300.0, -123.0]]
    assert inpo.loss(batch_of(logps, logps, previous=logps), Settings(eta))[0].item() == pytest.approx(0.25 / eta**2)


def test_gradient() -> None:
    """dL/dlogp(y_w) = 2 (h - 1/(2 eta)) = -dL/dlogp(y_l)."""
    found = gradient(lambda x: inpo.loss(batch_of(x, BATCH.ref_logps, previous=BATCH.previous_logps),
                                         Settings(0.25, 0.125))[0], BATCH.logps)
    assert found.tolist() == [[5.0, -5.0]]


def test_minimiser_is_the_closed_form() -> None:
    """Pairs from pi_t with binary labels: no gradient at pi ~ exp(P(y > pi_t)/eta) ref^{tau/eta} pi_t^{1 - tau/eta}."""
    generator = torch.Generator().manual_seed(1)
    skill = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    wins = (skill - skill.T).sigmoid()  # cyclic in general
    ref, now = (torch.randn(4, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(2))
    eta, pull = 0.7, 0.4
    best = (wins @ now.exp()) / eta + pull * ref + (1 - pull) * now
    i, j = (x.flatten() for x in torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"))
    weight = now.exp()[i] * now.exp()[j] * wins[i, j]  # y_i is drawn, y_j is drawn, y_i wins

    def expected(theta: torch.Tensor) -> torch.Tensor:
        logps = theta.log_softmax(0)
        return 2 * weight * inpo_losses(logps[i], logps[j], ref[i], ref[j], now[i], now[j], eta, pull)

    assert gradient(expected, best).abs().max() < 1e-12
    assert gradient(expected, now).abs().max() > 1e-2


def test_tau_may_not_exceed_eta() -> None:
    assert problems_of(Settings, {"eta": 0.01, "tau": 0.02}, "objective") == [
        "objective.tau: 0.02 is out of range, expected 0.0 <= x <= 0.01 (objective.eta) or null"]
    assert build(Settings, {}).pull == pytest.approx(1 / 3) and build(Settings, {"tau": 0.0}).pull == 0


def test_needs_the_previous_policy() -> None:
    with pytest.raises(ValueError, match="previous_logps"):
        inpo.loss(batch_of([[-1.0, -2.0]], [[-1.0, -2.0]]), Settings())
