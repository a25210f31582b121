"""The core's log-probs and gradients are those of the plain way: full logits, log-softmax, gather, sum."""

from __future__ import annotations

import pytest
import torch
import transformers

from pipeline.errors import UserError
from pipeline.lm import forward, prefix

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3}


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


FAMILIES = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SMALL, head_dim=8)),
    "mistral with a sliding window": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**SMALL, sliding_window=4)),
    "gemma2 with soft-capped logits": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0, sliding_window=4)),
    "gpt2": gpt2,
}


def naive_logps(model, examples) -> torch.Tensor:
    """(G, K) by one unpadded row at a time through the model's own head."""
    rows = []
    for e in examples:
        row = []
        for completion in e.completions:
            ids = torch.tensor([*e.prompt, *completion])[None]
            logps = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
            row.append(logps.gather(1, ids[0, 1:, None])[len(e.prompt) - 1:, 0].sum())
        rows.append(torch.stack(row))
    return torch.stack(rows)


def gradient(model, scalar) -> torch.Tensor:
    model.zero_grad()
    scalar.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_naive_way(tiny, family):
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    examples = tiny.examples(4)
    ours = forward.group_logps(model, forward.collate(examples), 2**30)
    naive = naive_logps(model, examples)
    assert torch.allclose(ours, naive, atol=1e-4, rtol=1e-6)
    weights = torch.linspace(-1, 1, 8).view(4, 2)
    ours_gradient = gradient(model, (ours * weights).sum())
    naive_gradient = gradient(model, (naive * weights).sum())
    assert (ours_gradient - naive_gradient).norm() <= 1e-6 * naive_gradient.norm() + 1e-6


def test_chunks_of_the_head_change_nothing(tiny):
    model, rows = tiny.llama(), forward.collate(tiny.examples(5, k=3))
    whole = forward.group_logps(model, rows, 2**30)
    pieces = forward.group_logps(model, rows, 7 * tiny.vocabulary)
    assert torch.allclose(whole, pieces, atol=1e-5)
    assert torch.allclose(gradient(model, whole.sum()), gradient(model, pieces.sum()), atol=1e-4, rtol=1e-5)


def test_absent_completions_are_zero(tiny):
    mixed = [*tiny.examples(1, k=3), *tiny.examples(1, k=1)]
    rows = forward.collate(mixed)
    assert rows.present.tolist() == [[True, True, True], [True, False, False]]
    logps = forward.group_logps(tiny.llama(), rows, 2**30)
    assert logps[1, 1:].tolist() == [0.0, 0.0] and (logps[rows.present] < 0).all()


def test_head_that_differs_is_refused(tiny):
    """A model that does to its logits what the core does not know of is caught before the first step."""
    model = tiny.llama()
    prefix.check_head(model)
    own = model.forward

    def doubled(**kwargs):
        out = own(**kwargs)
        out.logits = out.logits * 2
        return out

    model.forward = doubled
    with pytest.raises(UserError, match="changes its logits after the LM head"):
        prefix.check_head(model)
