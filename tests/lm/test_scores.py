"""Sequence scores: packed and row by row they are those of the model's own forward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from pipeline.lm import forward, scores
from pipeline.lm.examples import Example

PAD = 5
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3, "num_labels": 1,
         "pad_token_id": PAD}


def classifier(family: str, **more) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = {**SIZES, **more}
    if family == "GPT2":
        config = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "num_labels": 1,
                  "pad_token_id": PAD, "initializer_range": 0.3}
    made = getattr(transformers, f"{family}ForSequenceClassification")(
        getattr(transformers, f"{family}Config")(**config))
    return made.eval()


def examples_with_pads(tiny) -> list[Example]:
    """Random groups of three; completions that end in the pad token, as where it is the stop token, or have no other,
    and a group whose completions answer prompts of their own.
    """
    made = tiny.examples(5, k=3)
    pads = np.array([PAD, PAD], np.int32)
    ends = tuple(np.append(c, PAD).astype(np.int32) for c in made[0].completions[:2])
    return [*made, Example("ends", made[0].prompt, (*ends, pads)), Example("all", pads, (pads, made[1].prompt)),
            Example("own", made[1].prompt, made[1].completions, prompts=tuple(e.prompt for e in made[:3]))]


@pytest.mark.parametrize(("family", "more"), [("Llama", {}), ("Qwen2", {}), ("GPT2", {}), ("Mistral",
                         {"sliding_window": 4})], ids=["Llama", "Qwen2", "GPT2", "Mistral, window"])
def test_packed_scores_are_those_of_the_models_own_forward(tiny, family, more, capsys):
    """Scores and gradients of every weight: each row by itself through the model's own forward, and all packed."""
    model, examples = classifier(family, **more), examples_with_pads(tiny)
    own = [model(input_ids=torch.tensor(np.concatenate([e.prompt_of(k), c]))[None].long()).logits[0, 0]
           for e in examples for k, c in enumerate(e.completions)]
    slopes = torch.randn(len(own))
    gradients = torch.autograd.grad((torch.stack(own) * slopes).sum(), list(model.parameters()), allow_unused=True)
    scores.prepare(model)
    assert forward.is_shared(model) and capsys.readouterr().out.startswith(f"prompts are shared: {family}For")
    found, present = scores.group_scores(model, examples, PAD)
    assert torch.allclose(found[present], torch.stack(own), atol=1e-5)
    ours = torch.autograd.grad((found[present] * slopes).sum(), list(model.parameters()), allow_unused=True)
    for a, b in zip(ours, gradients, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, atol=1e-4, rtol=1e-4)


def test_a_score_that_is_more_than_a_layer_stays_with_rows(tiny, capsys):
    class Bent(transformers.LlamaForSequenceClassification):
        def forward(self, **inputs):
            out = super().forward(**inputs)
            out.logits = torch.tanh(out.logits) * 3
            return out

    model = Bent(transformers.LlamaConfig(**SIZES)).eval()
    before = model.config._attn_implementation
    examples, rows = tiny.examples(3), scores.group_scores(model, tiny.examples(3), PAD)[0]
    scores.prepare(model)
    assert "every completion is a row of its own: Bent: its packed scores differ" in capsys.readouterr().out
    assert model.config._attn_implementation == before
    assert torch.equal(scores.group_scores(model, examples, PAD)[0], rows)


def test_packed_rows_can_be_turned_off():
    model = classifier("Llama")
    scores.prepare(model, share_prefix=False)
    assert not forward.is_shared(model)
