"""One pass of matrix products for scoring and learning gives what two give: the same scores, losses and gradients."""

from __future__ import annotations

import pytest
import torch
import transformers

from pipeline.training import forward, replay
from pipeline.training.data import columns

KEPT = [[0, 3], [0, 1, 4], [0, 2], [0, 4], [0, 1, 2, 3, 4]]


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_one_pass_equals_two(tiny, precision):
    """Scores are those of a plain forward pass; the gradient of the kept completions is that of a forward pass on them
    alone: to 1e-5 in float32, to the rounding of the products (2^-8) in bfloat16.
    """
    model, examples = tiny.llama(), tiny.examples(5, k=5)
    forward.prepare(model)
    tolerance = 1e-5 if precision == "float32" else 2e-2
    small = [columns(e, ks) for e, ks in zip(examples, KEPT, strict=True)]
    weights = torch.linspace(-1, 1, 25).view(5, 5)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        plain = forward.group_logps(model, forward.collate(examples), 2**27).detach()
        separate = forward.group_logps(model, forward.collate(small), 2**27)
        wanted = gradient(model, (separate * weights).sum())
        scored = replay.score(model, examples, 2**27)
        with scored.replay(KEPT):
            replayed = forward.group_logps(model, forward.collate(small), 2**27)
    found = gradient(model, (replayed * weights).sum())
    assert torch.equal(scored.logps[:, 0], torch.zeros(5))
    assert torch.allclose(scored.logps[:, 1:], plain[:, 1:], atol=10 * tolerance)
    assert torch.allclose(replayed, separate, atol=10 * tolerance)
    for name, value in wanted.items():
        assert (found[name] - value).norm() <= tolerance * value.norm(), name


def test_products_are_taken_from_the_scoring_pass(tiny):
    """With weights changed in between, the replay still gives the old products: nothing is multiplied again."""
    model, examples = tiny.llama(), tiny.examples(5, k=5)
    forward.prepare(model)
    small = [columns(e, ks) for e, ks in zip(examples, KEPT, strict=True)]
    scored = replay.score(model, examples, 2**27)
    before = forward.group_logps(model, forward.collate(small), 2**27).detach()
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data.zero_()
    with scored.replay(KEPT):
        replayed = forward.group_logps(model, forward.collate(small), 2**27)
        again = forward.group_logps(model, forward.collate(small), 2**27)  # served once: this one multiplies
    assert torch.allclose(replayed, before, atol=1e-4)
    assert not torch.allclose(again, before, atol=1e-2)


def test_what_cannot_be_replayed(tiny):
    model = tiny.llama()
    assert not replay.replayable(model), "rows: the layouts would not match"
    forward.prepare(model)
    assert replay.replayable(model)
    model.train().gradient_checkpointing_enable()
    assert not replay.replayable(model)
    model.gradient_checkpointing_disable()
    assert replay.replayable(model)
    model.model.layers[0].compile()
    assert not replay.replayable(model)


def test_a_model_without_linear_layers_multiplies_again(tiny):
    """GPT-2's Conv1D is no linear layer, so nothing is taken from the scoring pass; the gradient is still whole, in
    bfloat16 too, where autocast would otherwise keep weights that the scoring pass converted without a gradient.
    """
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=tiny.vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0))
    examples = tiny.examples(5, k=5)
    forward.prepare(model)
    assert replay.replayable(model)
    small = [columns(e, ks) for e, ks in zip(examples, KEPT, strict=True)]
    with torch.autocast("cpu", torch.bfloat16):
        wanted = gradient(model, forward.group_logps(model, forward.collate(small), 2**27).sum())
    with torch.autocast("cpu", torch.bfloat16):
        scored = replay.score(model, examples, 2**27)
        with scored.replay(KEPT):
            found = gradient(model, forward.group_logps(model, forward.collate(small), 2**27).sum())
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
