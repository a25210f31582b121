"""What is written is what was trained: the folder is loaded back and compared, and a faulty one stops the run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import tables
from pipeline.config import build
from pipeline.errors import UserError
from pipeline.lm import adapters, folders, forward, prefix
from pipeline.lm.settings import AdapterSettings
from pipeline.training import average, checkpoint, delivered, run
from pipeline.training.gradients import ALONE
from pipeline.training.settings import TrainerSettings

CPU = torch.device("cpu")


def load(folder: Path):
    return folders.load_policy(folder, CPU)


@pytest.fixture
def probe(tiny) -> delivered.Probe:
    return delivered.Probe.of(tiny.examples(6, k=3))


def written(model, source: Path, out: Path, probe, **settings: object) -> Path:
    """The folder that the training stages write of `model`, checked."""
    trainer = build(TrainerSettings, settings)
    run.deliver(model, run.Origin(source, load), out, trainer, ALONE, probe)
    return out / "model"


def changed(model, size: float = 0.3):
    """Whatever learns, moved as by training."""
    generator = torch.Generator().manual_seed(1)
    for weights in checkpoint.weights(model).values():
        weights += size * torch.randn(weights.shape, generator=generator) * weights.abs().mean().clamp(min=0.1)
    return model


def test_the_first_groups_are_compared_cut_short(tiny):
    """Four groups, two completions of each; by the core in one pass with shared prompts, by the model row by row."""
    examples = tiny.examples(6, k=3)
    probe = delivered.Probe.of(examples)
    assert [e.id for e in probe.examples] == ["g0", "g1", "g2", "g3"]
    assert all(len(e.completions) == 2 for e in probe.examples)
    model = tiny.llama().eval()
    own = delivered.by_own_forward(model, probe)
    assert own.shape == (sum(e.completion_tokens for e in probe.examples),)
    prefix.prepare(model)
    assert forward.is_shared(model)
    assert torch.allclose(delivered.by_training_core(model, probe), own, atol=1e-4)


@pytest.mark.parametrize("adapter", [{}, {"kind": "lora", "r": 4}, {"kind": "lora", "r": 4, "dropout": 0.5}],
                         ids=["full", "lora", "lora with dropout"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_trained_is_delivered(tiny_model, tmp_path, probe, capsys, adapter, dtype):
    model = load(tiny_model)
    if adapter:
        adapters.add(model, build(AdapterSettings, adapter), seed=0)
    trained = delivered.by_training_core(changed(model).eval(), probe)
    folder = written(model.train(), tiny_model, tmp_path, probe, save_dtype=dtype, adapter=adapter)
    said = capsys.readouterr().out
    assert f"delivered as trained: loaded back, {len(trained)} log-probs of tokens differ by" in said
    gap = (delivered.by_own_forward(load(folder).eval(), probe) - trained).abs().mean().item()
    assert gap < (2e-5 if dtype == "float32" else 0.02 * trained.abs().mean()), gap
    assert load(tiny_model).dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_averages_are_delivered_as_they_are_not_as_the_first_delivery_rounded(tiny_model, tmp_path, probe, dtype):
    """Both deliveries of a training with `ema`: the second is compared with the averages themselves, in float32."""
    model, averaged = changed(load(tiny_model)), changed(load(tiny_model), size=0.2)
    averages = {name: p.detach().clone() for name, p in averaged.named_parameters()}
    wanted = delivered.by_training_core(averaged.eval(), probe)
    written(model, tiny_model, tmp_path / "weights", probe, save_dtype=dtype)
    average.put(averages, model)
    assert torch.equal(delivered.by_training_core(model.eval(), probe), wanted)
    again = load(written(model, tiny_model, tmp_path / "ema", probe, save_dtype=dtype))
    rounded = {name: p.to(getattr(torch, dtype)).float() for name, p in averages.items()}
    assert all(torch.equal(p, rounded[name]) for name, p in again.named_parameters())


def test_bytes_are_those_of_a_run_without_the_check(tiny_model, tmp_path, probe, monkeypatch):
    written(changed(load(tiny_model)), tiny_model, tmp_path / "checked", probe)
    monkeypatch.setattr(delivered, "check", lambda *_: None)
    monkeypatch.setattr(delivered, "by_training_core", lambda *_: None)
    written(changed(load(tiny_model)), tiny_model, tmp_path / "unchecked", probe)
    one, other = ({p.name: p.read_bytes() for p in (tmp_path / name / "model").iterdir()}
                  for name in ("checked", "unchecked"))
    assert one == other


def spoil_weights(folder: Path) -> None:
    """One head of one layer, as a merge into the wrong matrix would."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.o_proj.weight"] *= 1.2
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def spoil_rope(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] *= 3
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("spoil", [spoil_weights, spoil_rope])
def test_a_folder_that_is_another_model_stops_the_run(tiny_model, tmp_path, probe, monkeypatch, spoil):
    save = folders.save_folder
    monkeypatch.setattr(folders, "save_folder", lambda model, source, target, dtype: (
        save(model, source, target, dtype), spoil(target)))
    with pytest.raises(UserError, match="model: the folder written is not the model that was trained: ") as caught:
        written(load(tiny_model), tiny_model, tmp_path, probe)
    number = re.search(r"differ by ([\d.e-]+) on average and [\d.e-]+ at most", str(caught.value))
    assert number and float(number[1]) > 0.001
    assert "up to 0.0" in str(caught.value) and "is rounding in float32" in str(caught.value)


def test_scores_of_a_reward_model_are_compared(tiny_model, tmp_path, tiny, monkeypatch, capsys):
    probe = delivered.Probe.of(tiny.examples(4), pad=0)
    model = changed(folders.load_reward(tiny_model, CPU, seed=3, pad=0))
    origin = run.Origin(tiny_model, lambda folder: folders.load_reward(folder, CPU, 3, 0))
    trainer = TrainerSettings()
    run.deliver(model, origin, tmp_path, trainer, ALONE, probe)
    assert "8 scores differ by" in capsys.readouterr().out
    other = folders.load_reward(tiny_model, CPU, seed=4, pad=0)  # a head that was drawn anew
    with pytest.raises(UserError, match=r"8 scores differ by"):
        delivered.check(delivered.by_training_core(other.eval(), probe), tmp_path / "model", origin.load, probe,
                        "float32")


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_adapters_on_a_tied_head_are_refused(tiny_model, make_model, tmp_path, probe, target):
    """tests/conftest's model is tied. Merged, its head and its embedding would both change: refused. An untied one's
    head takes an adapter, and is delivered as trained.
    """
    lora = AdapterSettings(kind="lora", r=4, target_modules=("q_proj", target))
    with pytest.raises(UserError, match=rf"target_modules: {target}: this model's embedding and head are one matrix"):
        adapters.add(load(tiny_model), lora, seed=0)
    untied = make_model(tmp_path / "untied", tie_word_embeddings=False)
    model = load(untied)
    adapters.add(model, lora, seed=0)
    written(changed(model), untied, tmp_path, probe,
            adapter={"kind": "lora", "r": 4, "target_modules": ["q_proj", target]})


def test_a_training_stage_checks_what_it_delivers(tiny_model, tmp_path, monkeypatch):
    """sft on a table of four groups, with a folder spoiled behind its back."""
    from pipeline.records import Completion, Group, Message
    from pipeline.stage import Context
    from pipeline.stages import sft
    from pipeline.training.settings import TrainRuntime
    from tests import given

    groups = [Group(f"g{i}", (Message("user", "a"),), (Completion("b", token_ids=(9 + i, 12, 2)),), prompt_ids=(1, 8))
              for i in range(4)]
    tables.write(tmp_path / "groups", groups)
    inputs = {"model": (tiny_model,), "groups": (tmp_path / "groups",)}
    settings = build(sft.Settings, {"trainer": {"max_steps": 1, "batch_size": 2, "precision": "float32"}})
    context = Context(settings, TrainRuntime(device="cpu"), inputs, given.digests(inputs), tmp_path / "work", 0)
    save = folders.save_folder
    monkeypatch.setattr(folders, "save_folder", lambda model, source, target, dtype: (
        save(model, source, target, dtype), spoil_weights(target)))
    with pytest.raises(UserError, match="the folder written is not the model that was trained"):
        sft.run(context)
