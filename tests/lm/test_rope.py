"""Rotary positions in both words: what transformers 5 writes, and what older readers know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from pipeline.lm import folders
from pipeline.lm.rope import in_old_words

SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 256}


def test_by_hand():
    assert in_old_words({"a": 1}) == {"a": 1}
    plain = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    assert in_old_words(plain) == {**plain, "rope_theta": 5e5, "rope_scaling": None}
    scaled = {"rope_parameters": {"rope_theta": 1e4, **SCALED}}
    assert in_old_words(scaled) == {**scaled, "rope_theta": 1e4, "rope_scaling": {"type": "llama3", **SCALED}}
    layers = {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                                  "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}
    old = {"rope_theta": 1e6, "rope_local_base_freq": 1e4,
           "rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 8.0}}
    assert in_old_words({"text_config": layers}) == {"text_config": {**layers, **old}}


@pytest.mark.parametrize("config", [
    transformers.LlamaConfig(**SIZES, rope_parameters={"rope_theta": 5e5, **SCALED}),
    transformers.Gemma3TextConfig(**SIZES, head_dim=8),
    transformers.Phi3Config(**SIZES, pad_token_id=0, original_max_position_embeddings=128, rope_parameters={
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 128}),
], ids=["llama 3.1", "gemma 3", "phi 3"])
def test_transformers_reads_both_words_alike(tmp_path: Path, config):
    """With both, and with the old words alone, as in the folders that are published."""
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    both = in_old_words(json.loads(path.read_text()))
    old = {k: v for k, v in both.items() if k != "rope_parameters"}
    for content in (both, old):
        path.write_text(json.dumps(content))
        read = transformers.AutoConfig.from_pretrained(tmp_path)
        known = {k: {n: x for n, x in v.items() if n != "type"} if isinstance(v, dict) else v
                 for k, v in read.rope_parameters.items() if k != "type"}
        assert known == config.rope_parameters


@pytest.mark.parametrize("old", [True, False], ids=["old words", "today's words"])
def test_what_training_writes_keeps_the_words_of_the_folder_it_started_from(make_model, tmp_path: Path, old):
    """A folder in the old words gives one in both, which gives the same log-probs; any other is written as ever."""
    make_model(tmp_path / "source", rope_parameters={"rope_theta": 5e5, **SCALED})
    path = tmp_path / "source" / "config.json"
    given = json.loads(path.read_text())
    if old:
        path.write_text(json.dumps({k: v for k, v in in_old_words(given).items() if k != "rope_parameters"}))
    model = folders.load_policy(tmp_path / "source", torch.device("cpu")).eval()
    ids = torch.arange(3, 203)[None]
    with torch.no_grad():
        before = model(ids).logits
    folders.save_folder(model, tmp_path / "source", tmp_path / "target", "float32")
    written = json.loads((tmp_path / "target" / "config.json").read_text())
    assert ("rope_theta" in written and written["rope_scaling"]["factor"] == 8.0) == old
    assert written["rope_parameters"]["rope_theta"] == 5e5
    with torch.no_grad():
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "target")(ids).logits
    assert torch.allclose(before, again, atol=1e-5)


def test_a_generation_config_that_transformers_refuses_to_write_is_copied(make_model, tmp_path: Path):
    """As Llama 2's had it: a temperature without sampling."""
    make_model(tmp_path / "source")
    path = tmp_path / "source" / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [2, 6], "temperature": 0.9, "top_p": 0.6, "do_sample": False}))
    model = folders.load_policy(tmp_path / "source", torch.device("cpu"))
    folders.save_folder(model, tmp_path / "source", tmp_path / "target", "float32")
    assert (tmp_path / "target" / "generation_config.json").read_bytes() == path.read_bytes()
