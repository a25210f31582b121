"""Adapters start as no change, learn alone, leave the base as it was, and merge into a plain model."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import transformers

from pipeline.errors import UserError
from pipeline.lm import adapters, forward
from pipeline.lm.settings import AdapterSettings
from pipeline.training import optim

LORA = AdapterSettings(kind="lora", r=4, alpha=8)


def logps(model, examples):
    with torch.no_grad():
        return forward.group_logps(model, forward.collate(examples), 2**27)


def trained(tiny, **changes):
    """A model with an adapter that has made a few steps."""
    model = tiny.llama()
    adapters.add(model, dataclasses.replace(LORA, **changes), seed=0)
    optimizer = torch.optim.SGD(optim.trained(model).values(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        (-forward.group_logps(model, forward.collate(tiny.examples(4)), 2**27).mean()).backward()
        optimizer.step()
    return model


def test_starts_as_no_change_and_only_the_adapter_learns(tiny):
    model, examples = tiny.llama(), tiny.examples(4)
    before = logps(model, examples)
    adapters.add(model, LORA, seed=0)
    assert torch.equal(logps(model, examples), before)
    assert {name.rsplit(".", 3)[1] for name in optim.trained(model)} == {"lora_A", "lora_B"}
    assert all(p.dtype == torch.float32 for p in optim.trained(model).values())
    again = tiny.llama()
    adapters.add(again, LORA, seed=0)
    assert all(torch.equal(p, optim.trained(again)[name]) for name, p in optim.trained(model).items())


def test_with_the_adapter_off_it_is_its_reference(tiny):
    examples = tiny.examples(4)
    model, base = trained(tiny), logps(tiny.llama(), examples)
    changed = logps(model, examples)
    assert (changed - base).abs().max() > 0.1
    with adapters.off(model):
        assert torch.equal(logps(model, examples), base)
    assert torch.equal(logps(model, examples), changed)


def test_saved_and_merged_is_a_plain_model(tiny, tmp_path):
    model, examples = trained(tiny, target_modules=("q_proj", "v_proj")), tiny.examples(4)
    adapters.save(model, {n: p.detach() for n, p in optim.trained(model).items()}, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == 4 and sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    assert config["base_model_name_or_path"] in (None, ""), "no path in a payload"
    plain = adapters.merged(tiny.llama(), tmp_path)
    assert type(plain) is transformers.LlamaForCausalLM
    assert {n for n, _ in plain.named_parameters()} == {n for n, _ in tiny.llama().named_parameters()}
    assert torch.allclose(logps(plain, examples), logps(model, examples), atol=1e-4)


def test_layers_that_are_not_there(tiny):
    with pytest.raises(UserError, match=r"target_modules: \['query'\] fits no layer of LlamaForCausalLM"):
        adapters.add(tiny.llama(), dataclasses.replace(LORA, target_modules=("query",)), seed=0)


def test_four_bits_need_their_package_and_a_device(monkeypatch):
    four = AdapterSettings(kind="qlora")
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(UserError, match=r"adapter.kind: qlora needs the package bitsandbytes, .*alignloop\[q"):
            adapters.require(four, torch.device("cpu"))
        patch.setattr("importlib.util.find_spec", lambda name: name)
        with pytest.raises(UserError, match=r"trainer.adapter.kind: qlora runs on cuda and cpu, but the device is mps"):
            adapters.require(four, torch.device("mps"))
        adapters.require(four, torch.device("cpu"))
    adapters.require(LORA, torch.device("cpu"))
