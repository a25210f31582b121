"""SRPO, worked by hand and on a game.

beta = 1, log-ratios of the six conditionals (1, 0, 2, 1, 0, 3): improved: (2 - 1 - 1/2)^2 = 1/4 and (0 - 3 + 1/2)^2 =
25/4, half of the sum 13/4; generated: (1 - 0 - 3 + 1)^2 = 1. At alpha = 1/4: 3/4 13/4 + 1/4 = 2.6875.
"""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import UserError
from pipeline.objectives import srpo
from pipeline.objectives.srpo import Settings, srpo_losses
from tests.objectives.batches import batch_of, gradient

REFERENCE = torch.tensor([[-9.0, -8.0, -7.0, -6.0, -5.0, -4.0]], dtype=torch.float64)
POLICY = REFERENCE + torch.tensor([[1.0, 0, 2, 1, 0, 3]])


def test_hand_worked_value() -> None:
    losses, metrics = srpo.loss(batch_of(POLICY, REFERENCE), Settings(1.0, 0.25))
    assert losses.item() == pytest.approx(2.6875, abs=1e-12)
    assert metrics["margin"].item() == 1 and metrics["improvement"].item() == 1


def test_policy_equal_to_reference() -> None:
    """(1 - alpha) / 4."""
    assert srpo.loss(batch_of(REFERENCE, REFERENCE), Settings(0.01, 0.5))[0].item() == pytest.approx(0.125, abs=1e-12)


def test_gradient() -> None:
    """Residuals 1/2, -5/2 (improved) and -1 (generated), each times its weight and sign, at beta = 1, alpha = 1/4."""
    found = gradient(lambda x: srpo.loss(batch_of(x, REFERENCE), Settings(1.0, 0.25))[0], POLICY)
    imp, gen = 0.75, 0.5
    expected = [-gen, gen, imp * 0.5, -imp * 0.5 - gen, -imp * 2.5, imp * 2.5 + gen]
    assert found[0].tolist() == pytest.approx(expected, abs=1e-12)


def test_optimum_of_the_game_has_no_loss() -> None:
    """Reviser pi+(y2|y1) ~ ref(y2|y1) exp(P(y2 > y1)/beta) and author pi(y1) ~ ref(y1)/Z(y1), on three answers."""
    generator = torch.Generator().manual_seed(4)
    skill = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    wins, beta = (skill - skill.T).sigmoid(), 0.4  # [i, j] = P(y_i > y_j)
    ref = torch.randn(3, generator=generator, dtype=torch.float64).log_softmax(0)
    ref_after = torch.randn(3, 3, generator=generator, dtype=torch.float64).log_softmax(1)  # [draft, revision]
    scaled = ref_after + wins.T / beta
    after = scaled.log_softmax(1) - ref_after
    before = (ref - scaled.logsumexp(1)).log_softmax(0) - ref
    for w in range(3):
        for other in range(3):
            six = torch.stack([before[w], before[other], after[other, w], after[other, other], after[w, other],
                               after[w, w]])[None]
            assert srpo_losses(six, beta, 0.3, wins[w, other]).item() == pytest.approx(0, abs=1e-12)


def test_layout_is_checked() -> None:
    with pytest.raises(UserError, match=r"6 completions.*draft y_l.*found a group of 2"):
        srpo.loss(batch_of([[-1.0, -2.0]], [[-1.0, -2.0]]), Settings())
    hole = batch_of(POLICY, REFERENCE, present=[[True, True, False, True, True, True]])
    losses, metrics = srpo.loss(hole, Settings())
    assert losses.item() == 0 and metrics["improvement"].item() == 0
    assert srpo.loss(batch_of([[-1.0]], [[-1.0]]), Settings())[0].tolist() == [0.0]
