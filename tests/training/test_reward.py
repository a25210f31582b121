"""The reward model's loss, by hand, and the split that stays the same in every run."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from pipeline.lm import prefix
from pipeline.lm.examples import Example
from pipeline.training import reward
from pipeline.training.inputs import About


class Summing(torch.nn.Module):
    """A "model" whose score is weight x the sum of a row's ids: pad 0 adds nothing."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))
        self.config = SimpleNamespace(_attn_implementation="eager")

    def forward(self, input_ids, use_cache):
        return SimpleNamespace(logits=self.weight * input_ids.sum(1, keepdim=True).float())


def test_bradley_terry_by_hand(tiny):
    """Scores 0.1 x the sum of ids: the prompt cancels, so the margin is 0.1 (sum of chosen - sum of rejected)."""
    examples = tiny.examples(6)
    margins = [0.1 * (int(e.completions[0].sum()) - int(e.completions[1].sum())) for e in examples]
    losses, metrics, _ = reward.RewardTask(pad=0).losses(Summing(0.1), examples, 0, About.of(examples))
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-m)) for m in margins], rel=1e-4, abs=1e-6)
    assert metrics["accuracy"].tolist() == [float(m > 0) for m in margins]
    measured = reward.accuracy(Summing(0.1), examples, 0, tokens_per_batch=40)
    assert measured["margin"] == pytest.approx(sum(margins) / 6, abs=1e-4)
    assert measured["accuracy"] == pytest.approx(sum(m > 0 for m in margins) / 6)


def test_several_rejected_are_averaged(tiny):
    (example,) = tiny.examples(1, k=3)
    sums = [int(c.sum()) for c in example.completions]
    losses, _, _ = reward.RewardTask(pad=0).losses(Summing(0.1), [example], 0, About.of([example]))
    by_hand = [math.log1p(math.exp(-0.1 * (sums[0] - s))) for s in sums[1:]]
    assert losses.tolist() == pytest.approx([sum(by_hand) / 2], rel=1e-4)


def test_split_goes_by_id(tiny):
    examples = tiny.examples(400)
    training, held_out = reward.split(examples, 0.1)
    assert len(training) + len(held_out) == 400 and 20 <= len(held_out) <= 60
    assert {e.id for e in reward.split(examples[::-1], 0.1)[1]} == {e.id for e in held_out}
    assert reward.split(examples, 0.0)[1] == []


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
    reward.prepare(model, PAD)
    assert prefix.is_shared(model) and capsys.readouterr().out.startswith(f"prompts are shared: {family}For")
    scores, present = reward.group_scores(model, examples, PAD)
    assert torch.allclose(scores[present], torch.stack(own), atol=1e-5)
    ours = torch.autograd.grad((scores[present] * slopes).sum(), list(model.parameters()), allow_unused=True)
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
    examples, rows = tiny.examples(3), reward.group_scores(model, tiny.examples(3), PAD)[0]
    reward.prepare(model, PAD)
    assert "every completion is a row of its own: Bent: its packed scores differ" in capsys.readouterr().out
    assert model.config._attn_implementation == before
    assert torch.equal(reward.group_scores(model, examples, PAD)[0], rows)


def test_packed_rows_can_be_turned_off():
    model = classifier("Llama")
    reward.prepare(model, PAD, share_prefix=False)
    assert not prefix.is_shared(model)
