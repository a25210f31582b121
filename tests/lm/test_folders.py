"""How weights are loaded: heads that no file has, and those that nothing trains."""

from __future__ import annotations

import pytest
import torch

from pipeline.lm import adapters, devices, folders
from pipeline.lm.settings import AdapterSettings

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_reward_models_first_head_is_that_of_the_cpu_on_every_device(tiny, tmp_path):
    """What `load_reward` draws elsewhere is what transformers draws here."""
    tiny.llama().save_pretrained(tmp_path)
    model = folders.load_reward(tmp_path, CPU, seed=7, pad=0)
    assert torch.equal(model.score.weight, folders.first_head(model, 7))
    assert not torch.equal(model.score.weight, folders.first_head(model, 8))


@pytest.mark.parametrize(("device", "precision", "expected"), [
    (CUDA, "bfloat16", {"dtype": torch.bfloat16}), (CUDA, "float32", {}), (CPU, "bfloat16", {})])
def test_frozen_weights_take_two_bytes_on_cuda_alone(device, precision, expected):
    """Those of references, scorers and of the base under an adapter; what learns has float32 masters."""
    assert folders.frozen(device, precision) == expected
    assert adapters.base(AdapterSettings("lora"), precision, device) == expected
    assert adapters.base(AdapterSettings("none"), precision, device) == {}


@pytest.mark.parametrize(("built", "said"), [
    (None, "is a build for CPUs; make setup DEVICE=cuda"), ("13.0", "wants an NVIDIA driver 580 or newer"),
    ("12.8", "wants an NVIDIA driver 525 or newer")])
def test_what_is_missing_is_named(built, said, monkeypatch):
    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12020). Please update")

    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "9")
    told = devices.found()
    assert told["devices"] == [] and said in told["why"]
    if built is not None:
        assert "too old (found version 12020); CUDA_VISIBLE_DEVICES='9' may hide" in told["why"]
