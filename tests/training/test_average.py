"""Weights averaged while a policy is trained: against the formula, and through a kill."""

from __future__ import annotations

import dataclasses

import torch

from pipeline.training import average, checkpoint
from pipeline.training.loop import fit
from tests.training.test_loop import DPO, job, task


def averaged(outcome) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in outcome.averages.values()])


def flat(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_an_average_follows_the_weights():
    """One weight at 1 that moves to 3, then to 5, decay 0.75: 1 -> 1.5 -> 2.375."""
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
        averages = average.begin(model, {})
        for value in (3.0, 5.0):
            model.weight.fill_(value)
            average.follow(averages, model, 0.75)
    assert averages["weight"].item() == 2.375
    average.put(averages, model)
    assert model.weight.item() == 2.375


def test_what_a_checkpoint_carries_is_told_apart():
    extra = {"baseline": torch.zeros(()), **average.marked({"w": torch.ones(1)})}
    assert average.unmarked(extra).keys() == {"baseline"} and extra["ema.w"].item() == 1.0


def test_training_keeps_them_and_a_kill_changes_nothing(tiny, tmp_path):
    """Between the first and the last weights, and the same bytes when everything after step 4 is made again."""
    def run(model):
        return fit(model, tiny.examples(12), task(DPO), dataclasses.replace(job(tmp_path, epochs=2.0), ema=0.5))

    model, begun = tiny.llama(), flat(tiny.llama())
    first = run(model)
    newest = checkpoint.newest(tmp_path / "checkpoints")
    assert newest is not None and newest.name == "step-00000004"
    again = run(tiny.llama(seed=1))
    assert torch.equal(averaged(first), averaged(again))
    there, moved = averaged(first), flat(model) - begun
    share = ((there - begun) * moved).sum() / (moved * moved).sum()
    assert 0.1 < share < 1.0 and not torch.equal(there, flat(model))
