"""LD-DPO and WPO: DPO that looks at tokens.

A pair of 2 and 3 tokens. Policy per token: chosen (-1, -2), rejected (-1, -3, -4); reference: chosen (-2, -2), rejected
(-1, -1, -2). So a = 1, b = -8 + 4 = -4, h = 5; of b the part beyond two tokens is -4 + 2 = -2.
"""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.objectives import dpo, ld_dpo, wpo
from pipeline.objectives.contract import LossInputs, TokenInputs
from tests.objectives.batches import view_of

GROUP, SIDE, PLACE = torch.zeros(5, dtype=torch.int64), torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 0, 1, 2])
TOKENS = torch.tensor([-1.0, -2.0, -1.0, -3.0, -4.0], dtype=torch.float64)
REFERENCE = torch.tensor([-2.0, -2.0, -1.0, -1.0, -2.0], dtype=torch.float64)
LENGTHS = torch.tensor([[2, 3]])


def batch_of(tokens: torch.Tensor = TOKENS, ref: torch.Tensor = REFERENCE, **more) -> LossInputs:
    def sums(values: torch.Tensor) -> torch.Tensor:
        return torch.stack([values[:2].sum(), values[2:].sum()])[None]

    view = TokenInputs(torch.zeros(5, dtype=torch.int64), GROUP, SIDE, PLACE, tokens, ref_logps=ref, **more)
    return LossInputs(sums(tokens), LENGTHS, torch.ones(1, 2, dtype=torch.bool), sums(ref), tokens=view)


# ----------------------------------------------------------------------------------------------------------- LD-DPO


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_ld_dpo_hand_worked(alpha):
    """b = -2 + alpha (-2): h = 3, 4 and 5 nats; beta = 0.1."""
    losses, metrics = ld_dpo.loss(batch_of(), ld_dpo.Settings(alpha=alpha))
    margin = 0.1 * (1 + 2 + 2 * alpha)
    assert losses.item() == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-12)
    assert metrics["margin"].item() == pytest.approx(margin)


def test_ld_dpo_limits():
    whole = ld_dpo.loss(batch_of(), ld_dpo.Settings(alpha=1.0))[0].item()
    assert whole == pytest.approx(dpo.loss(batch_of(), dpo.Settings())[0].item(), abs=1e-12)
    same = ld_dpo.loss(batch_of(TOKENS, TOKENS.clone()), ld_dpo.Settings())[0].item()
    assert same == pytest.approx(math.log(2), abs=1e-12)


def test_ld_dpo_gradient_weighs_the_tail():
    """-beta s(-0.4) on the chosen tokens, beta s(-0.4) on the shared and half of it on the last rejected one."""
    tokens = TOKENS.clone().requires_grad_()
    ld_dpo.loss(batch_of(tokens), ld_dpo.Settings())[0].sum().backward()
    pull = 0.1 / (1 + math.exp(0.4))
    assert tokens.grad is not None
    assert tokens.grad.tolist() == pytest.approx([-pull, -pull, pull, pull, pull / 2], abs=1e-12)


def test_ld_dpo_without_tokens_is_an_error():
    with pytest.raises(ValueError, match=r"LossInputs\.tokens"):
        ld_dpo.loss(LossInputs(torch.zeros(1, 2), LENGTHS, torch.ones(1, 2, dtype=torch.bool)), ld_dpo.Settings())


# -------------------------------------------------------------------------------------------------------------- WPO


def squares(logits: torch.Tensor) -> torch.Tensor:
    return view_of(logits, torch.zeros(len(logits), dtype=torch.int64))["log_sum_squares"]


def test_log_sum_squares_hand_worked():
    """Probabilities (1/2, 1/4, 1/4): 1/4 + 1/16 + 1/16 = 3/8. Uniform over V: 1/V. One certain token: 1."""
    logits = torch.tensor([[0.5, 0.25, 0.25], [1.0, 1.0, 1.0], [1.0, 1e-30, 1e-30]], dtype=torch.float64).log() + 5.0
    got = squares(logits)
    assert not got.requires_grad and got.tolist() == pytest.approx([math.log(3 / 8), -math.log(3), 0.0], abs=1e-12)


def test_weights_hand_worked():
    """Chosen: token probabilities 1/2 and 1/4 under (1/2, 1/4, 1/4): sqrt(1/2 * 1/4) / (3/8) = 0.942809041582063.

    Rejected: 1/3 of a uniform distribution, three times: 1.
    """
    logps = torch.tensor([0.5, 0.25, 1 / 3, 1 / 3, 1 / 3], dtype=torch.float64).log().requires_grad_()
    likeness = logps - torch.tensor([3 / 8, 3 / 8, 1 / 3, 1 / 3, 1 / 3], dtype=torch.float64).log()
    weights = wpo.wpo_weights(torch.stack([likeness[:2].sum(), likeness[2:].sum()])[None], LENGTHS)
    assert weights[0].tolist() == pytest.approx([0.942809041582063, 1.0], abs=1e-12)
    assert not weights.requires_grad


def test_wpo_is_the_weighted_dpo_loss_and_the_weight_is_a_constant():
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], *[[1 / 3] * 3] * 3], dtype=torch.float64)
    logits = probabilities.log().requires_grad_()
    tokens = logits[:, 0]  # the first token everywhere: 1/2, 1/4, 1/3, 1/3, 1/3
    batch = batch_of(tokens, REFERENCE, log_sum_squares=squares(logits))
    losses, metrics = wpo.loss(batch, wpo.Settings(beta=0.1))
    plain = dpo.loss(batch, dpo.Settings(beta=0.1))[0]
    assert metrics["weight"].item() == pytest.approx(0.942809041582063, abs=1e-12)
    assert losses.item() == pytest.approx(0.942809041582063 * plain.item(), abs=1e-12)
    both = [torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0] for loss in (losses, plain)]
    torch.testing.assert_close(both[0], 0.942809041582063 * both[1])


def test_wpo_at_the_reference_with_its_own_samples_costs_ln_2():
    """A uniform policy: both weights are 1."""
    logits = torch.zeros(5, 4, dtype=torch.float64)
    tokens = logits.log_softmax(dim=1)[:, 0]
    losses, _ = wpo.loss(batch_of(tokens, tokens.clone(), log_sum_squares=squares(logits)), wpo.Settings())
    assert losses.item() == pytest.approx(math.log(2), abs=1e-12)


def test_wpo_hardly_counts_what_the_policy_would_not_write():
    """A sure policy and tokens of -50 nats: exp(-50) each."""
    logits = torch.zeros(5, 4, dtype=torch.float64)
    logits[:, 1] = 50.0
    tokens = logits.log_softmax(dim=1)[:, 0]
    _, metrics = wpo.loss(batch_of(tokens, REFERENCE, log_sum_squares=squares(logits)), wpo.Settings())
    assert metrics["weight"].item() == pytest.approx(math.exp(-100), rel=1e-9)
