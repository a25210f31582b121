"""Losses that compare groups: the gradient of the global batch, however it is cut; the state they carry."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pipeline.config import Part
from pipeline.errors import UserError
from pipeline.lm.examples import normalised_weights
from pipeline.objectives.contract import Needs, Objective
from pipeline.training import inputs, policy
from pipeline.training.gradients import BatchFacts, accumulate


@dataclasses.dataclass(frozen=True)
class Settings:
    """None."""


def spread() -> Part:
    """L_g = (mean over the batch of log pi(y_w) - log pi(y_l) - that of g + shift)^2: each group needs all others."""
    def loss(batch, settings):
        margin = batch.logps[:, 0] - batch.logps[:, 1]
        return (margin.mean() - margin + batch.state["shift"]) ** 2, {"margin": margin.detach()}

    def update(batch, settings):
        return {"shift": batch.state["shift"] + batch.logps.shape[0]}

    def gain(hidden, layers, settings):
        return {"gain": torch.full((layers, hidden), 2.0)}

    plugin = Objective(Settings, loss, Needs(pairs=True, batch=True), state=lambda settings: {"shift": 0.5},
                       update=update, parameters=gain)
    return Part("spread", plugin, Settings())


def gradient_of(tiny, tokens: int):
    model, part = tiny.llama(), spread()
    task = policy.PolicyTask(part, None, 0, tokens, 2**27, state=policy.first_state(part, torch.device("cpu")))
    _, values, bad = accumulate(model, task, tiny.examples(8), 0, "float32", tokens)
    assert bad == []
    return torch.cat([p.grad.flatten() for p in model.parameters()]), values, task.state


def test_any_split_gives_the_gradient_of_the_whole_batch(tiny):
    whole, values, state = gradient_of(tiny, 10**6)
    for tokens in (200, 60, 1):
        cut, again, after = gradient_of(tiny, tokens)
        assert torch.allclose(cut, whole, atol=1e-6 * whole.abs().max().item(), rtol=1e-4)
        assert again["loss"] == pytest.approx(values["loss"], rel=1e-5)
        assert again["margin"] == pytest.approx(values["margin"], rel=1e-4)
        assert after == state == {"shift": torch.tensor(8.5)}, "once per global batch, before the loss sees it"


@pytest.mark.parametrize("weights", [(0.0, 0.0), (2.0, -1.0)])
def test_weights_that_say_nothing_are_refused(tiny, weights):
    examples = [dataclasses.replace(e, weight=w) for e, w in zip(tiny.examples(2), weights, strict=True)]
    with pytest.raises(UserError, match="weights: those of a batch of 2 groups"):
        normalised_weights(examples, "groups")


def test_mismatched_partner_has_another_prompt(tiny):
    """Groups 1 and 2 share a prompt: 2 takes 0's completion, not its neighbour's."""
    examples = tiny.examples(3)
    examples[2] = dataclasses.replace(examples[2], prompt=examples[1].prompt)
    found = inputs.partners(examples)
    assert [found[e.id].id for e in examples] == ["g2", "g0", "g0"]
    with pytest.raises(UserError, match="a global batch of 1 with only one prompt"):
        inputs.partners(examples[:1])


def test_joined_batch_is_in_the_order_of_the_groups(tiny):
    """Cut as [2, 0] and [1], of 2 and 3 completions: rows come back as 0, 1, 2, padded to 3 columns."""
    model, examples = tiny.llama(), tiny.examples(3, k=2)
    examples[1] = tiny.examples(2, k=3, seed=5)[1]
    task = policy.PolicyTask(spread(), None, 0, 10**6, 2**27)
    facts, cut = BatchFacts.of(examples), [[2, 0], [1]]
    with torch.no_grad():
        parts = [task.inputs(model, [examples[i] for i in micro], 0, facts) for micro in cut]
    whole = inputs.joined(parts, cut)
    assert whole.lengths.tolist() == [[len(c) for c in e.completions] + [0] * (3 - len(e.completions))
                                      for e in examples]
    assert whole.present.sum(1).tolist() == [2, 3, 2] and whole.logps[1].tolist() == parts[1].logps[0].tolist()


def test_parameters_of_an_objective_train_with_the_policy_and_leave_it_again(tiny):
    model, part = tiny.llama(), spread()
    before = {name for name, _ in model.named_parameters()}
    policy.add_parameters(model, part)
    assert policy.parameters_of(model)["gain"].shape == (2, 32)
    assert {n for n, _ in model.named_parameters()} - before == {f"{policy.PARAMETERS}.gain"}
    assert policy.remove_parameters(model)["gain"].unique().tolist() == [2.0]
    assert {name for name, _ in model.named_parameters()} == before
