"""One packed row of trees gives what separate rows give, family by family, gradients included."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
import transformers

from pipeline.lm import forward, packed, prefix
from pipeline.lm.examples import Example, columns

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3}
FAMILIES = {
    "llama": (transformers.LlamaConfig, SIZES),
    "qwen2": (transformers.Qwen2Config, SIZES),
    "qwen2 sliding": (transformers.Qwen2Config, SIZES | {"use_sliding_window": True, "sliding_window": 5,
                                                         "max_window_layers": 1}),
    "qwen3": (transformers.Qwen3Config, SIZES | {"head_dim": 8}),
    "mistral": (transformers.MistralConfig, SIZES | {"sliding_window": None}),
    "mistral sliding": (transformers.MistralConfig, SIZES | {"sliding_window": 4}),
    "gpt2": (transformers.GPT2Config, {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
                                       "initializer_range": 0.3}),
}


def build(config: type, values: dict) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config(**values)).eval()


def mixed(tiny) -> list[Example]:
    """Pairs, a single one, five completions, a prompt of one token, and completions with prompts of their own."""
    ids = np.arange(3, 60, dtype=np.int32)
    own = Example("own", ids[:4], (ids[:3], ids[5:11], ids[7:9]), prompts=(ids[:4], ids[20:26], ids[:4]))
    bare = Example("bare", ids[:1], (ids[4:8], ids[9:10]))
    return [*tiny.examples(3, reference=False), *tiny.examples(1, k=1), *tiny.examples(1, k=5), bare, own]


def logps_and_gradient(model, examples, weights):
    logps = forward.group_logps(model, forward.collate(examples), 2**27)
    model.zero_grad()
    (logps * weights).sum().backward()
    return logps.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("rows", [256, 3], ids=["whole", "blocks"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_rows(tiny, family, rows, capsys, monkeypatch):
    """Also where a completion's attention is cut into blocks of a few rows, as long ones are."""
    monkeypatch.setattr(packed, "_ROWS", rows)
    model, examples = build(*FAMILIES[family]), mixed(tiny)
    weights = torch.linspace(-1, 1, len(examples) * 5).view(-1, 5)
    rows = logps_and_gradient(model, examples, weights)
    prefix.prepare(model)
    assert forward.is_shared(model), capsys.readouterr().out
    shared = logps_and_gradient(model, examples, weights)
    assert torch.allclose(rows[0], shared[0], atol=2e-5, rtol=1e-6)
    assert (rows[1] - shared[1]).norm() <= 2e-6 * rows[1].norm()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("family", FAMILIES)
def test_completions_that_grow_on_a_stem_equal_rows(tiny, family, checkpointing):
    """The first completions in one pass and the others in a second one that sees their prompts: the same log-probs, and
    a gradient that reaches the prompts from both.
    """
    model, examples = build(*FAMILIES[family]), [e for e in mixed(tiny) if e.prompts is None and len(e.completions) > 1]
    weights = torch.linspace(-1, 1, len(examples) * 5).view(-1, 5)
    rows = logps_and_gradient(model, examples, weights)
    prefix.prepare(model)
    if checkpointing:
        model.train().gradient_checkpointing_enable({"use_reentrant": False})
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    first = forward.collate([columns(e, [0]) for e in examples], layout=packed.pack_stem)
    rest = forward.collate([columns(e, range(1, len(e.completions))) for e in examples],
                           layout=partial(packed.pack, stem=first.packed))
    assert rest.packed.input_ids.shape[1] == sum(len(c) for e in examples for c in e.completions[1:]), "no prompts"
    logps = torch.cat([forward.group_logps(model, part, 2**27) for part in (first, rest)], dim=1)
    assert torch.allclose(rows[0], logps, atol=2e-5, rtol=1e-6)
    model.zero_grad()
    (logps * weights).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert (rows[1] - gradient).norm() <= 2e-6 * rows[1].norm()


def test_layers_are_the_same(tiny):
    model, examples = tiny.llama(), mixed(tiny)
    rows = forward.layers_at_predictions(model, forward.collate(examples))
    prefix.prepare(model)
    assert torch.allclose(rows, forward.layers_at_predictions(model, forward.collate(examples)), atol=1e-5)


def test_gradient_checkpointing_changes_nothing(tiny):
    model, examples = tiny.llama(), mixed(tiny)
    prefix.prepare(model)
    weights = torch.ones(len(examples), 5)
    plain = logps_and_gradient(model, examples, weights)
    model.train().gradient_checkpointing_enable()
    again = logps_and_gradient(model, examples, weights)
    assert torch.equal(plain[0], again[0]) and torch.allclose(plain[1], again[1], atol=1e-6)


def test_shared_model_still_works_alone(tiny):
    """Padded batches and a mask of two dimensions, as generation and scoring use them, are untouched."""
    model = tiny.llama()
    ids = torch.arange(3, 13).view(2, 5)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    before = model(input_ids=ids, attention_mask=mask).logits
    prefix.prepare(model)
    assert torch.allclose(before[mask > 0], model(input_ids=ids, attention_mask=mask).logits[mask > 0], atol=1e-5)


def test_saved_config_does_not_name_the_layout(tiny, tmp_path):
    model = tiny.llama()
    prefix.prepare(model)
    model.save_pretrained(tmp_path)
    assert forward.ATTENTION not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("config, values, words", [
    (transformers.BloomConfig, {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}, ""),
    (transformers.MambaConfig, {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}, ""),
    (transformers.Gemma2Config, SIZES | {"head_dim": 8}, "its attention takes softcap"),
], ids=["bloom", "mamba", "gemma2"])
def test_families_that_cannot_share_stay_with_rows_and_say_so(tiny, capsys, config, values, words):
    model, examples = build(config, values), tiny.examples(3)
    before = forward.group_logps(model, forward.collate(examples), 2**27)
    prefix.prepare(model)
    assert not forward.is_shared(model)
    assert "prompts are not shared" in (said := capsys.readouterr().out) and words in said
    assert torch.equal(before, forward.group_logps(model, forward.collate(examples), 2**27))


def test_layout_of_a_pair():
    """Prompt 1 2 3, completions 7 8 9 and 5: inputs [1 2 | 3 7 8 | 3], positions [0 1 | 2 3 4 | 2]."""
    example = Example("a", np.array([1, 2, 3]), (np.array([7, 8, 9]), np.array([5])))
    laid = packed.pack([example], "cpu")
    assert laid.input_ids.tolist() == [[1, 2, 3, 7, 8, 3]]
    assert laid.position_ids.tolist() == [[0, 1, 2, 3, 4, 2]]
    assert laid.predict.tolist() == [2, 3, 4, 5]
    assert [(s.length, s.root) for s in laid.segments] == [(2, -1), (3, 0), (1, 0)]
    assert packed.unique_tokens(example) == 6
    single = dataclasses.replace(example, completions=example.completions[:1])
    assert packed.unique_tokens(single) == 5 == packed.pack([single], "cpu").input_ids.shape[1]


def test_unique_tokens_are_what_is_laid_out(tiny):
    for example in mixed(tiny):
        assert packed.unique_tokens(example) == packed.pack([example], "cpu").input_ids.shape[1]


def test_layout_on_a_stem():
    """The pair of above with its second completion on the first's prompt, and a prompt of one token, which has none."""
    examples = [Example("a", np.array([1, 2, 3]), (np.array([7, 8, 9]),)),
                Example("b", np.array([4]), (np.array([5]),))]
    stem = packed.pack_stem(examples, "cpu")
    assert stem.input_ids.tolist() == [[1, 2, 3, 7, 8, 4]]
    assert stem.roots == (0, -1)
    grown = packed.pack([dataclasses.replace(e, completions=(np.array([6, 7]),)) for e in examples], "cpu", stem)
    assert grown.input_ids.tolist() == [[3, 6, 4, 6]]
    assert grown.position_ids.tolist() == [[2, 3, 0, 1]]
    assert [(s.length, s.root) for s in grown.segments] == [(2, 0), (2, -1)]
