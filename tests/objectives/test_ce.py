"""Cross-entropy: the negative log-probability of completion 0, nothing else."""

from __future__ import annotations

import torch

from pipeline.objectives import ce, mixture
from pipeline.objectives.contract import LossInputs


def test_loss_is_minus_the_log_prob_and_its_gradient_minus_one() -> None:
    logps = torch.tensor([[-12.0], [-3.0], [float("nan")]], requires_grad=True)
    batch = LossInputs(logps, torch.tensor([[4], [1], [0]]), torch.tensor([[True], [True], [False]]))
    losses, metrics = ce.loss(batch, ce.Settings())
    losses.sum().backward()
    assert losses.tolist() == [12.0, 3.0, 0.0]
    assert metrics["token_nll"].tolist() == [3.0, 3.0, 0.0]
    assert logps.grad is not None
    assert logps.grad[:, 0].tolist() == [-1.0, -1.0, 0.0]


def test_only_the_first_completion_is_learned() -> None:
    logps = torch.tensor([[-12.0, -1.0]], dtype=torch.float64, requires_grad=True)
    batch = LossInputs(logps, torch.tensor([[4, 2]]), torch.ones(1, 2, dtype=torch.bool))
    losses, _ = ce.loss(batch, ce.Settings())
    losses.sum().backward()
    assert losses.dtype == torch.float64
    assert logps.grad is not None
    assert logps.grad.tolist() == [[-1.0, 0.0]]


def test_an_answer_labelled_unwanted_is_not_raised() -> None:
    """Also as a part of a mixture, where it is divided by the wanted tokens: 12 nats of 4 tokens in two groups."""
    logps = torch.tensor([[-12.0], [-3.0]], requires_grad=True)
    batch = LossInputs(logps, torch.tensor([[4], [1]]), torch.ones(2, 1, dtype=torch.bool),
                       labels=torch.tensor([True, False]))
    losses, _ = ce.loss(batch, ce.Settings())
    losses.sum().backward()
    assert losses.tolist() == [12.0, 0.0] and logps.grad is not None and logps.grad[:, 0].tolist() == [-1.0, 0.0]
    mixed, _ = mixture.loss(batch, mixture.Settings(({"module": "pipeline.objectives.ce", "weight": 1.0},)))
    assert mixed.tolist() == [6.0, 0.0]
