"""A few tokens through trainer, reference and reward model: what a family does not survive ends before training."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pipeline.errors import UserError
from pipeline.lm import acceptance, checks, converted, folders, round_trip
from pipeline.source import ADAPTER, Source


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


def save_net(folder: Path, config: transformers.PretrainedConfig) -> None:
    """The folder's tokenizer with another network."""
    torch.manual_seed(0)
    (folder / "model.safetensors").unlink()
    side = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "config.json"}
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name, content in side.items():
        (folder / name).write_bytes(content)


def test_a_model_that_is_sound_makes_the_round(folder: Path, tmp_path: Path):
    measured = round_trip.check(folder, tmp_path / "scratch", reward=True, name="it")
    assert measured["trainer_gap"] < 1e-4 and measured["saved_gap"] == 0.0 and measured["reward_gap"] < 1e-4
    assert measured["english"] > math.log(320) / 2  # a random model
    assert not (tmp_path / "scratch").exists()


def taught(folder: Path) -> None:
    """The folder's model after it has learned the round trip's own text."""
    model, (example, _) = folders.load_policy(folder, torch.device("cpu")), round_trip.examples(folder)
    ids = torch.from_numpy(np.concatenate([example.prompt_of(0), example.completions[0]]).astype(np.int64))[None]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    model.model.norm.weight.data *= 4  # as sure of it as a pretrained one
    folders.save_folder(model, shutil.copytree(folder, folder.parent / "source"), folder, "float32")


@pytest.mark.parametrize("whole", [round_trip._WHOLE, 1000])
def test_the_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path, monkeypatch, whole: int):
    """It knows the text, and with its ids in another order it is worse at it than chance; of a large model, too."""
    monkeypatch.setattr(round_trip, "_WHOLE", whole)
    taught(folder)
    assert round_trip.check(folder, tmp_path / "scratch", reward=False, name="it")["english"] < 1
    tensors = load_file(folder / "model.safetensors")
    order = torch.randperm(320, generator=torch.Generator().manual_seed(0))
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][order].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"it: plain English costs it [\d.]+ nats a token, more than chance \(5.8\)"):
        round_trip.check(folder, tmp_path / "scratch", reward=False, name="it")


def test_gpt2_makes_the_round(folder: Path, tmp_path: Path):
    save_net(folder, transformers.GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=2, n_positions=128,
                                             bos_token_id=1, eos_token_id=2))
    assert round_trip.check(folder, tmp_path / "scratch", reward=True, name="it")["saved_gap"] == 0.0


@pytest.mark.parametrize("generation", [
    {"temperature": 0.9, "top_p": 0.6, "eos_token_id": [2, 6]}, {"do_sample": False, "temperature": 0.5},
    {"early_stopping": True, "num_beams": 1}, {"pad_token_id": -1}])
def test_a_generation_config_that_transformers_will_not_save_is_copied(folder: Path, tmp_path: Path, generation: dict):
    """Published folders have such ones; `save_pretrained` refused them after hours of training."""
    written = json.dumps({"eos_token_id": [2, 6], **generation})
    (folder / checks.GENERATION).write_text(written)
    model = folders.load_policy(folder, torch.device("cpu"))
    folders.save_folder(model, folder, tmp_path / "saved", "float32")
    assert (tmp_path / "saved" / checks.GENERATION).read_text() == written
    assert folders.stop_ids(tmp_path / "saved") == (2, 6)
    assert round_trip.check(folder, tmp_path / "scratch", reward=False, name="it")["saved_gap"] == 0.0


def test_weights_that_are_missing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    lack = r"its weights lack model.layers.1.mlp.up_proj.weight, which would start as random numbers; copy it again"
    with pytest.raises(UserError, match=f"model.path: it: {lack}"):
        round_trip.check(folder, tmp_path / "scratch", reward=False, name="it")
    monkeypatch.setattr(round_trip, "_WHOLE", 1000)  # of a large one too, of which only the first layers are loaded
    with pytest.raises(UserError, match=lack):
        round_trip.check(folder, tmp_path / "scratch", reward=False, name="it")
    with pytest.raises(UserError, match=lack):
        folders.load_policy(folder, torch.device("cpu"))


BIASES = {f"model.layers.0.self_attn.{part}_proj.bias" for part in "qkvo"}


@pytest.mark.parametrize("whole", [round_trip._WHOLE, 1000])
def test_weights_that_the_configuration_has_no_place_for(folder: Path, tmp_path: Path, monkeypatch, whole: int):
    """transformers drops them in silence, and another model than the published one is trained; of a large one too, of
    which only the first layers make the round.
    """
    monkeypatch.setattr(round_trip, "_WHOLE", whole)
    tensors = load_file(folder / "model.safetensors")
    with_biases = tensors | {name: torch.ones(tensors[name.replace("bias", "weight")].shape[0]) for name in BIASES}
    save_file(with_biases, folder / "model.safetensors", metadata={"format": "pt"})
    left = (r"its weights have model.layers.0.self_attn.k_proj.bias, model.layers.0.self_attn.o_proj.bias, .*for which "
            "config.json has no place, so they would be dropped; take both files from one place")
    with pytest.raises(UserError, match=f"model.path: it: {left}"):
        round_trip.check(folder, tmp_path / "scratch", reward=False, name="it")
    with pytest.raises(UserError, match=left):
        folders.load_policy(folder, torch.device("cpu"))


def test_layers_that_the_configuration_does_not_count(folder: Path, tmp_path: Path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(UserError, match=r"it: its weights have model.layers.1.input_layernorm.weight, .*has no place"):
        round_trip.check(folder, tmp_path / "scratch", reward=False, name="it")


def test_what_a_language_model_is_whole_without_is_left_out(folder: Path, tmp_path: Path):
    """The tied head written out, positions' frequencies as older files keep them, the head of a reward model."""
    tensors = load_file(folder / "model.safetensors")
    hidden = tensors["model.norm.weight"].shape[0]
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone(),
                         "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
                         "score.weight": torch.ones(1, hidden)}, folder / "model.safetensors",
              metadata={"format": "pt"})
    assert round_trip.check(folder, tmp_path / "scratch", reward=True, name="it")["saved_gap"] == 0.0


def test_weights_of_another_shape_than_the_configuration_asks_for(folder: Path, tmp_path: Path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 400}))
    with pytest.raises(UserError, match=r"it: its weights have model.embed_tokens.weight as \[320, \d+\], config.json"):
        round_trip.check(folder, tmp_path / "scratch", reward=False, name="it")
    problems = acceptance.problems(Source(str(folder)), reward=False)
    assert any("config.json says vocab_size 400, the embedding has 320 rows" in problem for problem in problems)


def test_a_large_model_is_cut_to_one_layer_of_each_kind(folder: Path, monkeypatch: pytest.MonkeyPatch):
    config = transformers.Gemma3TextConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=8, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, layer_types=["sliding_attention"] * 3 + ["full_attention"] * 5,
        sliding_window=8, max_position_embeddings=128, bos_token_id=1, eos_token_id=2)
    save_net(folder, config)
    monkeypatch.setattr(round_trip, "_WHOLE", 1000)
    assert round_trip._first_layers(folder).layer_types == ["sliding_attention"] * 3 + ["full_attention"]
    measured = round_trip.check(folder, folder.parent / "scratch", reward=True, name="it")
    assert measured["trainer_gap"] < round_trip.TOLERANCE and measured["saved_gap"] == 0.0


def test_same_logprobs_by_value():
    """By hand: differences 0, 0.001 and 0.5 nats; a number that is none is no agreement."""
    left = [[[-1.0, -2.0], [-3.0]]]
    assert round_trip.same_logprobs(left, [[[-1.0, -2.001], [-3.0]]], "a against b") == pytest.approx(0.001)
    with pytest.raises(UserError, match=r"a against b: .* by up to 0.5 nats, allowed are 0.002"):
        round_trip.same_logprobs(left, [[[-1.0, -2.0], [-3.5]]], "a against b")
    with pytest.raises(UserError, match="inf nats"):
        round_trip.same_logprobs(left, [[[-1.0, math.nan], [-3.0]]], "a against b")


def adapter_of(base: Path, target: Path, **config: object) -> Path:
    import peft

    torch.manual_seed(1)
    model = peft.get_peft_model(folders.load_policy(base, torch.device("cpu")), peft.LoraConfig(**{
        "r": 4, "target_modules": ["q_proj", "up_proj"], "init_lora_weights": False, **config}))
    model.save_pretrained(target)
    return target


def test_an_adapter_is_merged_on_its_base(folder: Path, tmp_path: Path):
    """The merged folder has the log-probs of base and adapter apart, which are not the base's."""
    adapter, target = adapter_of(folder, tmp_path / "adapter"), tmp_path / "merged"
    target.mkdir()
    converted.merged(adapter, folder, target)
    given = round_trip.examples(target)
    merged, base = (round_trip.own_logps(folders.load_policy(one, torch.device("cpu")), given)
                    for one in (target, folder))
    assert round_trip.gap(merged, base) > 0.1
    assert not (target / ADAPTER).exists() and checks.problems(checks.Folder.of(target)) == []


def test_an_adapter_that_does_not_fit_its_base(folder: Path, tmp_path: Path, make_model):
    adapter = adapter_of(make_model(tmp_path / "other", hidden_size=32), tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    with pytest.raises(UserError, match=r"the adapter does not fit .*; name the model that it was trained on"):
        converted.merged(adapter, folder, tmp_path / "merged")


def test_a_tokenizer_in_two_files_becomes_one(folder: Path, tmp_path: Path):
    """vocab.json and merges.txt, as GPT-2 and Qwen publish them: the same ids from tokenizer.json."""
    whole = json.loads((folder / "tokenizer.json").read_text())
    old = shutil.copytree(folder, tmp_path / "old")
    (old / "tokenizer.json").unlink()
    (old / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    (old / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(m) for m in whole["model"]["merges"])]))
    config = json.loads((old / "tokenizer_config.json").read_text())
    (old / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "GPT2Tokenizer"}))
    assert checks.problems(checks.Folder.of(old)) == []
    shutil.copytree(old, tmp_path / "new")
    converted.fast_tokenizer(old, tmp_path / "new")
    text = "Practise a little every day."
    assert folders.load_tokenizer(tmp_path / "new")(text)["input_ids"] == folders.load_tokenizer(old)(text)["input_ids"]
    assert (tmp_path / "new" / "tokenizer.json").is_file()
