"""Online IPO and EGPO, worked by hand and on a game.

Scores ln 3, 0 and an opponent at 0: P(y > y'') = 3/4, P(y' > y'') = 1/2, difference 1/4. Log-ratios 6 and 2 at
beta = 1/8: sums L = (4 - 2)^2 = 4; averages over 2 and 4 tokens, L = (3 - 1/2 - 2)^2 = 1/4.
"""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.errors import UserError
from pipeline.objectives import egpo, online_ipo
from pipeline.objectives.contract import Needs
from pipeline.objectives.online_ipo import Settings, online_ipo_losses
from tests.objectives.batches import batch_of, gradient

SCORES = [[math.log(3), 0.0, 0.0]]
BATCH = batch_of([[-4.0, -8.0, -1.0]], [[-10.0, -10.0, -9.0]], lengths=[[2, 4, 3]], scores=SCORES)
PAIR = batch_of([[-4.0, -8.0]], [[-10.0, -10.0]], lengths=[[2, 4]], scores=[[math.log(3), 0.0]])


@pytest.mark.parametrize(("log_ratio", "expected"), [("sum", 4.0), ("avg", 0.25)])
def test_hand_worked_value(log_ratio: str, expected: float) -> None:
    losses, metrics = online_ipo.loss(BATCH, Settings(0.125, 1, log_ratio))
    assert losses.item() == pytest.approx(expected, abs=1e-12)
    assert metrics["target"].item() == pytest.approx(2.0)
    assert torch.equal(egpo.loss(BATCH, egpo.Settings(0.125, log_ratio))[0], losses)


def test_policy_equal_to_reference() -> None:
    """(difference / beta)^2 = 4."""
    same = batch_of(BATCH.ref_logps, BATCH.ref_logps, scores=SCORES)
    assert online_ipo.loss(same, Settings(0.125))[0].item() == pytest.approx(4, abs=1e-12)


def test_a_pair_without_opponents_is_version_2() -> None:
    """P(y > y') - 1/2 = 1/4."""
    one, two = (online_ipo.loss(PAIR, Settings(0.125, version, "sum")) for version in (1, 2))
    assert one[0].item() == pytest.approx(4.0, abs=1e-12) and two[0].item() == pytest.approx(4.0, abs=1e-12)
    assert one[1].keys() == two[1].keys()


def test_opponents_are_averaged_and_absent_ones_ignored() -> None:
    """Opponents at 0 and at ln 3: differences 1/4 and 1/2 - 1/4, mean 1/4; a third, absent one changes nothing."""
    scores = torch.tensor([[math.log(3), 0.0, 0.0, math.log(3), float("nan")]], dtype=torch.float64)
    present = torch.tensor([[True, True, True, True, False]])
    assert online_ipo.preference_differences(scores, present).item() == pytest.approx(0.25, abs=1e-12)


def test_the_order_of_the_two_does_not_matter() -> None:
    swapped = batch_of(BATCH.logps[:, [1, 0, 2]], [[-10.0, -10.0, -9.0]], scores=[[0.0, math.log(3), 0.0]])
    ours = online_ipo.loss(swapped, Settings(0.125, 1, "sum"))[0].item()
    assert ours == pytest.approx(4.0, abs=1e-12)


def test_gradient_goes_into_the_two_log_probs_only() -> None:
    """2 (residual) and its negative, over the lengths for averages."""
    found = gradient(lambda x: online_ipo.loss(batch_of(x, BATCH.ref_logps, lengths=[[2, 4, 3]], scores=SCORES),
                                               Settings(0.125))[0], BATCH.logps)
    assert found[0].tolist() == pytest.approx([2 * 0.5 / 2, -2 * 0.5 / 4, 0])


def test_two_gradients_at_theta_t_are_the_extragradient_update() -> None:
    """pi_{t+1} ~ pi_t^{1 - c beta} ref^{c beta} exp(c P(. > pi_half)), c = 4 lr/(beta N), y and y' uniform."""
    generator = torch.Generator().manual_seed(2)
    skill = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    wins = (skill - skill.T).sigmoid()
    ref, start = (torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(2))
    beta, lr = 0.3, 0.2

    def step(opponent: torch.Tensor) -> torch.Tensor:
        def expected(theta: torch.Tensor) -> torch.Tensor:
            ratios, strength = theta.log_softmax(0) - ref, wins @ opponent.exp()
            return online_ipo_losses(ratios[:, None].expand(5, 5), ratios[None].expand(5, 5),
                                     strength[:, None] - strength[None], beta) / 25

        return (start - lr * gradient(expected, start)).log_softmax(0)

    half = step(start)
    c = 4 * lr / (beta * 5)
    closed = ((1 - c * beta) * start + c * beta * ref + c * (wins @ half.exp())).log_softmax(0)
    assert torch.allclose(step(half), closed, atol=1e-12)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="pairs"):
        online_ipo.loss(BATCH, Settings(version=2))
    with pytest.raises(ValueError, match="scores"):
        egpo.loss(batch_of([[-1.0, -2.0]], [[-1.0, -2.0]]), egpo.Settings())
    assert online_ipo.loss(batch_of([[-1.0]], [[-2.0]], scores=[[1.0]]), Settings())[0].item() == 0
    assert online_ipo.needs(Settings()) == Needs(reference=True, scores=True, lists=True, takes=("drawn",))
