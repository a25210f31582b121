"""The chunked head against log_softmax and gather: values and gradients, whole, in pieces, kept or computed again."""

from __future__ import annotations

import pytest
import torch
import transformers

from pipeline.lm import head

N, H, V = 23, 16, 64


def make(tied_bias: bool = False, **config) -> transformers.PreTrainedModel:
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=V, hidden_size=H, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=False, initializer_range=0.5))
    if tied_bias:
        model.lm_head = torch.nn.Linear(H, V, bias=True)
    for name, value in config.items():
        setattr(model.config, name, value)
    return model


def both(model, chunk, autocast=False):
    """((logps, gradients) of ours, of the naive way), upstream gradient different for every token."""
    torch.manual_seed(2)
    hidden, targets, slopes = torch.randn(N, H, requires_grad=True), torch.randint(0, V, (N,)), torch.randn(N)
    layer = model.get_output_embeddings()
    leaves = [hidden, *layer.parameters()]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = head.token_logps(model, hidden, targets, chunk)
        naive = head.head_logits(model, hidden).float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return [(logps, torch.autograd.grad(logps, leaves, slopes)) for logps in (ours, naive)]


@pytest.mark.parametrize("chunk", [1, 3 * V, 10 * V, 2**27], ids=["one token", "three", "ten", "whole"])
@pytest.mark.parametrize("config", [{}, {"tied_bias": True}, {"logit_scale": 0.25}, {"logits_scaling": 3.0},
                                    {"final_logit_softcapping": 2.0}], ids=lambda c: next(iter(c), "plain"))
def test_equals_log_softmax_and_gather(config, chunk):
    (ours, our_gradients), (naive, gradients) = both(make(**config), chunk)
    assert torch.allclose(ours, naive, atol=1e-5)
    for a, b in zip(our_gradients, gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-5), (a - b).abs().max()


@pytest.mark.parametrize("chunk", [3 * V, 2**27])
def test_under_autocast(chunk):
    """Products in bfloat16, sums in float32: as near to the naive way under autocast as its own rounding (2^-8)."""
    (ours, our_gradients), (naive, gradients) = both(make(), chunk, autocast=True)
    assert ours.dtype == torch.float32 and torch.allclose(ours, naive, atol=1e-3)
    for a, b in zip(our_gradients, gradients, strict=True):
        assert a.dtype == torch.float32 and (a - b).norm() <= 1e-2 * b.norm()


def test_no_more_than_the_budget_is_kept(monkeypatch):
    """Of 23 tokens in chunks of 4, a budget of 10 tokens keeps the logits of the first two chunks."""
    monkeypatch.setattr(head, "_CACHE", 4 * V)
    hidden = torch.randn(N, H, requires_grad=True)
    logps = head.token_logps(make(), hidden, torch.zeros(N, dtype=torch.int64), 10 * V)
    kept = [t for t in logps.grad_fn.saved_tensors if t is not None and t.dim() == 2 and t.shape[1] == V]
    assert [len(t) for t in kept] == [4, 4]


def test_frozen_head_gets_no_gradient():
    model, hidden = make(), torch.randn(N, H, requires_grad=True)
    model.lm_head.weight.requires_grad_(False)
    head.token_logps(model, hidden, torch.zeros(N, dtype=torch.int64), 2**27).sum().backward()
    assert model.lm_head.weight.grad is None and hidden.grad.abs().sum() > 0
