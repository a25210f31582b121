"""Nash-MD, worked by hand.

log pi(y) = -6, log ref(y) = -8, scores ln 3 and 0 (P = 3/4), beta = 1/10: the bracket is 3/4 - 1/2 - 2/10 = 1/20, so
L = 6/20 and dL/dlog pi(y) = -1/20. With tokens of log-ratio 3 and -1: dL/dlog pi(y_t) = 1/10 (3, -1) - 1/4.
"""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.objectives import nash_md
from pipeline.objectives.nash_md import Settings, nash_md_token_losses
from tests.objectives.batches import batch_of, gradient, token_batch

SCORES = [[math.log(3), 0.0]]
BATCH = batch_of([[-6.0, -5.0]], [[-8.0, -5.0]], scores=SCORES)


def test_hand_worked_value() -> None:
    losses, metrics = nash_md.loss(BATCH, Settings(0.1))
    assert losses.item() == pytest.approx(0.3, abs=1e-12)
    assert metrics["win_probability"].item() == pytest.approx(0.75)
    assert metrics["rewards_chosen"].item() == pytest.approx(0.2)


def test_gradients() -> None:
    """Of both players: half of -1/20 for y, half of -(1/4 - 1/2 - 0) for y'."""
    def slope(settings: Settings) -> list[float]:
        return gradient(lambda x: nash_md.loss(batch_of(x, BATCH.ref_logps, scores=SCORES), settings)[0],
                        BATCH.logps)[0].tolist()

    assert slope(Settings(0.1)) == pytest.approx([-0.05, 0])
    assert slope(Settings(0.1, players="both")) == pytest.approx([-0.025, 0.125])
    assert slope(Settings(0.1, control_variate=0.0)) == pytest.approx([-0.55, 0])


def test_at_the_reference_only_the_preference_is_left() -> None:
    """-(P - 1/2) log pi(y) = 8/4."""
    same = batch_of(BATCH.ref_logps, BATCH.ref_logps, scores=SCORES)
    assert nash_md.loss(same, Settings())[0].item() == pytest.approx(2.0, abs=1e-12)


def test_expected_sequence_gradient_is_that_of_the_regularised_game() -> None:
    """Sum over y ~ pi of the loss gradients = -d/dtheta [P(pi > m) - beta KL(pi || ref)]."""
    generator = torch.Generator().manual_seed(5)
    theta, ref, other = (torch.randn(4, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(3))
    skill = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    wins = (skill - skill.T).sigmoid() @ other.exp()

    def ours(x: torch.Tensor) -> torch.Tensor:
        logps = x.log_softmax(0)
        return theta.exp() * nash_md.nash_md_losses(logps, ref, wins, 0.3)

    def game(x: torch.Tensor) -> torch.Tensor:
        logps = x.log_softmax(0)
        return -(logps.exp() * (wins - 0.3 * (logps - ref)))

    assert torch.allclose(gradient(ours, theta), gradient(game, theta), atol=1e-12)


def test_token_form() -> None:
    logps, refs = torch.tensor([-2.0, -4.0]), torch.tensor([-5.0, -3.0])
    wins = torch.tensor([0.75, 0.75])
    slope = gradient(lambda x: nash_md_token_losses(x, refs, wins, 0.1), logps)
    assert slope.tolist() == pytest.approx([0.05, -0.35])
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = token_batch(logits, logits.flip(0), [0, 1, 2, 3], [0] * 4, [0, 0, 1, 1],
                        scores=torch.tensor(SCORES, dtype=torch.float64))
    tokens = batch.tokens
    assert tokens is not None and tokens.ref_logps is not None
    expected = ((0.1 * (tokens.logps - tokens.ref_logps) - 0.25) * tokens.logps)[:2].sum().item()
    losses, metrics = nash_md.loss(batch, Settings(0.1, "token"))
    assert losses.item() == pytest.approx(expected, abs=1e-12)
    assert metrics["rewards_chosen"].item() == pytest.approx(
        nash_md.loss(batch, Settings(0.1))[1]["rewards_chosen"].item(), abs=1e-12)


def test_needs_follow_the_form_and_extremes_are_finite() -> None:
    assert nash_md.needs(Settings(form="token")).reference_tokens and nash_md.needs(Settings()).reference
    far = batch_of([[-2000.0, 0.0]], [[0.0, -2000.0]], scores=[[1e4, -1e4]])
    assert nash_md.loss(far, Settings(players="both"))[0].isfinite().all()
