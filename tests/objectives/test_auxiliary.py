"""The terms beside an objective: values, what they hide from it, what they add."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pipeline.objectives import auxiliary
from pipeline.objectives.contract import LossInputs, Needs, TokenInputs

D = torch.float64


def pair(**changes: object) -> LossInputs:
    """One pair: y_w of 2 tokens (-1, -2), y_l of 4 tokens (-1, -1, -3, -5); the reference's are half of them."""
    logps = torch.tensor([-1.0, -2.0, -1.0, -1.0, -3.0, -5.0], dtype=D, requires_grad=True)
    tokens = TokenInputs(
        targets=torch.arange(6), group=torch.zeros(6, dtype=torch.int64), column=torch.tensor([0, 0, 1, 1, 1, 1]),
        position=torch.tensor([0, 1, 0, 1, 2, 3]), logps=logps, ref_logps=logps.detach() / 2)
    made = LossInputs(torch.tensor([[-3.0, -10.0]], dtype=D), torch.tensor([[2, 4]]),
                      torch.ones(1, 2, dtype=torch.bool), ref_logps=torch.tensor([[-1.5, -5.0]], dtype=D),
                      tokens=tokens)
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize("normalise, expected", [("sum", [3.0, 8.0]), ("mean", [1.5, 2.0]), ("batch", [1.0, 8 / 3])])
def test_sft_term_in_its_three_normalisations(normalise, expected):
    """log-probs -3 of 2 tokens and -8 of 4: sums 3 and 8; means 1.5 and 2; over 3 tokens a group on average 1 and 2.67,
    whose mean 11/6 is 11 nats over 6 tokens."""
    losses = auxiliary.sft_losses(torch.tensor([-3.0, -8.0], dtype=D), torch.tensor([2, 4]), normalise)
    assert losses.tolist() == pytest.approx(expected, abs=1e-12)


def test_sft_term_is_added_with_its_weight_and_uses_the_global_mean():
    settings = auxiliary.Settings(sft_weight=0.5)
    losses, metrics = auxiliary.terms(pair(mean_wanted_length=6.0), settings)
    assert losses.tolist() == pytest.approx([0.25]) and metrics["sft_loss"].tolist() == pytest.approx([0.5])


@pytest.mark.parametrize("alpha, expected", [(1.0, [-3.0, -10.0]), (0.5, [-3.0, -6.0]), (0.0, [-3.0, -2.0])])
def test_tokens_beyond_the_shorter_side_weigh_alpha(alpha, expected):
    """y_l: -1 -1 within the 2 tokens of y_w, -3 -5 beyond: -2 - 8 alpha."""
    batch = auxiliary.before(pair(), auxiliary.Settings(length_alpha=alpha))
    assert batch.logps[0].tolist() == pytest.approx(expected)
    assert batch.ref_logps is not None
    assert batch.ref_logps[0].tolist() == pytest.approx([v / 2 for v in expected])


def test_gradient_of_a_desensitised_token_is_alpha():
    batch = pair()
    auxiliary.before(batch, auxiliary.Settings(length_alpha=0.25)).logps.sum().backward()
    assert batch.tokens.logps.grad.tolist() == [1, 1, 1, 1, 0.25, 0.25]


@pytest.mark.parametrize("wrapped, expected", [(False, 0.5), (True, 0.9740769841801067)])
def test_a_rationale_is_charged_where_there_is_one(wrapped, expected):
    """A rationale with log-prob -5 and gamma 0.1: 0.5, or -log s(-0.5) = log(1 + e^0.5); else nothing."""
    batch = LossInputs(torch.tensor([[-3.0, -10.0]] * 2, dtype=D), torch.tensor([[2, 4]] * 2),
                       torch.ones(2, 2, dtype=torch.bool), rationale_logps=torch.tensor([-5.0, 0.0], dtype=D),
                       explained=torch.tensor([True, False]))
    settings = auxiliary.Settings(rationale_gamma=0.1, rationale_log_sigmoid=wrapped)
    losses, metrics = auxiliary.terms(batch, settings)
    assert auxiliary.before(batch, settings) is batch
    assert losses.tolist() == pytest.approx([expected, 0.0])
    assert metrics["rationale_logps"].tolist() == [-5.0, 0.0] and metrics["rationale_share"].tolist() == [1.0, 0.0]
    assert auxiliary.needs(settings) == Needs(rationale=True)


@pytest.mark.parametrize("normalise, expected", [("sum", [3.0, 0.0, 8.0]), ("mean", [1.5, 0.0, 2.0]),
                                                 ("batch", [1.5, 0.0, 4.0])])
def test_an_answer_labelled_unwanted_has_no_sft_term(normalise, expected):
    """Of 2, 10 and 4 tokens, the second unwanted: batch divides by 6 tokens over 3 groups, so that the mean over groups
    is 11 nats over the 6 wanted tokens."""
    logps = torch.tensor([[-3.0], [-7.0], [-8.0]], dtype=D, requires_grad=True)
    batch = LossInputs(logps, torch.tensor([[2], [10], [4]]), torch.ones(3, 1, dtype=torch.bool),
                       labels=torch.tensor([True, False, True]), mean_chosen_length=16 / 3)
    losses, metrics = auxiliary.terms(batch, auxiliary.Settings(sft_weight=1.0, sft_normalise=normalise))
    losses.sum().backward()
    assert losses.tolist() == metrics["sft_loss"].tolist() == pytest.approx(expected)
    assert logps.grad[1].item() == 0.0


def test_everything_off_changes_nothing():
    batch, settings = pair(), auxiliary.Settings()
    assert auxiliary.before(batch, settings) is batch
    losses, metrics = auxiliary.terms(batch, settings)
    assert losses.tolist() == [0.0] and metrics == {} and auxiliary.needs(settings) == Needs()
