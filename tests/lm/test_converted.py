"""A GGUF file of our own becomes the folder that it was written from; what cannot be read is told from its header."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers

from pipeline import weights
from pipeline.lm import converted, folders, probe, round_trip
from pipeline.lm.template_check import NO_TEMPLATE
from pipeline.source import Source, parameters

NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


def write(model: Path, file: Path, architecture: str = "llama", template: bool = True) -> Path:
    """The folder's Llama and its byte-level tokenizer as llama.cpp's converter writes them, in float32."""
    net = transformers.AutoModelForCausalLM.from_pretrained(model)
    config, tokenizer = net.config, transformers.AutoTokenizer.from_pretrained(model)
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = {i: token for token, i in tokenizer.get_vocab().items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([vocabulary.get(i, f"<unused{i}>") for i in range(config.vocab_size)])
    writer.add_token_types([3 if i < 7 or i not in vocabulary else 1 for i in range(config.vocab_size)])
    merges = json.loads((model / "tokenizer.json").read_text())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    if template:
        writer.add_chat_template(tokenizer.chat_template)
    for name, tensor in net.state_dict().items():
        if name != "lm_head.weight":  # tied
            writer.add_tensor(*_as_written(name, tensor.numpy(), config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _as_written(name: str, tensor: np.ndarray, config: transformers.LlamaConfig) -> tuple[str, np.ndarray]:
    """Its name in the file; queries and keys with the two halves of a head interleaved."""
    outer = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in outer:
        return outer[name], tensor
    _, _, layer, rest = name.split(".", 3)
    ours = rest.removesuffix(".weight")
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}.get(ours)
    if heads is not None:
        tensor = tensor.reshape(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
    return f"blk.{layer}.{NAMES[ours]}.weight", np.ascontiguousarray(tensor)


def test_the_folder_of_a_file_is_the_model_that_was_written(tiny_model: Path, tmp_path: Path):
    """The same log-probs, ids and template; plain text begins with BOS, as the file says."""
    target = tmp_path / "made"
    converted.from_gguf(write(tiny_model, tmp_path / "m.gguf"), target)
    given = round_trip.examples(tiny_model)
    one, other = (round_trip.own_logps(folders.load_policy(folder, torch.device("cpu")), given)
                  for folder in (tiny_model, target))
    assert round_trip.gap(one, other) < 1e-4
    ours, theirs = (folders.load_tokenizer(folder) for folder in (tiny_model, target))
    text = "Practise a little every day."
    assert theirs(text)["input_ids"] == [1, *ours(text, add_special_tokens=False)["input_ids"]]
    assert theirs.chat_template == ours.chat_template
    assert "quantization_config" not in json.loads((target / "config.json").read_text())


def test_what_the_header_tells(tiny_model: Path, tmp_path: Path):
    assert probe.gguf_problems(write(tiny_model, tmp_path / "good.gguf")) == []
    assert parameters(Source(str(tmp_path / "good.gguf"))) == weights.parameters(tiny_model)
    bare = write(tiny_model, tmp_path / "bare.gguf", template=False)
    assert probe.gguf_problems(bare) == [NO_TEMPLATE] and probe.gguf_problems(bare, template_given=True) == []
    (problem,) = probe.gguf_problems(write(tiny_model, tmp_path / "odd.gguf", architecture="llama99"))
    assert "architecture 'llama99' is not one that transformers reads" in problem


def test_a_file_that_is_cut_short_a_strange_type_and_a_broken_template(tiny_model: Path, tmp_path: Path):
    file = write(tiny_model, tmp_path / "m.gguf")
    content = bytearray(file.read_bytes())
    file.write_bytes(content[:-100])
    (problem,) = probe.gguf_problems(file)
    assert problem == f"it is cut short: {len(content) - 100} bytes, its header promises {len(content)}; copy it again"
    place = content.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8  # the type is behind the shape
    content[place:place + 4] = (99).to_bytes(4, "little")
    file.write_bytes(content)
    (problem,) = probe.gguf_problems(file)
    assert problem.startswith("weights of type number 99 cannot be read; take a file of another type")
    broken = tmp_path / "broken.gguf"
    template = (tiny_model / "chat_template.jinja").read_bytes()
    at = write(tiny_model, broken).read_bytes()
    broken.write_bytes(at.replace(template, template.replace(b"{%", b"{?", 1)))
    (problem,) = probe.gguf_problems(broken)
    assert problem.startswith("its chat template is no Jinja template (line ")


@pytest.mark.parametrize("content", [b"GGUF", b"", b"no such file at all " * 100])
def test_files_that_are_none(content: bytes, tmp_path: Path):
    (tmp_path / "m.gguf").write_bytes(content)
    (problem,) = probe.gguf_problems(tmp_path / "m.gguf")
    assert parameters(Source(str(tmp_path / "m.gguf"))) is None
    assert problem.startswith("no GGUF file that can be read (") and problem.endswith("or take the safetensors folder")
