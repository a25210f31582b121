"""The memory of a plan: by hand, against a process that trains, and of the runs that have to fit."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flows import machine, memory
from flows.compose import compose
from flows.memory import How, Shape
from pipeline import plan

LLAMA_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
            "max_position_embeddings": 131072, "model_type": "llama"}
SHAPE_8B = Shape(4096, 14336, 32, 4096, 1024, 128256, False, 131072)


def folder_of(config: dict[str, object], weights: int, folder: Path) -> Path:
    """A model's folder: its configuration, and a file that declares so many weights and holds none."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [weights], "data_offsets": [0, 4 * weights]}})
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + 4 * weights)
    return folder


def test_shape_and_weights_of_8b(tmp_path: Path) -> None:
    """8.03 B weights, as published."""
    assert memory.shape_of({"path": str(folder_of(LLAMA_8B, 10, tmp_path))}) == SHAPE_8B
    assert SHAPE_8B.weights == pytest.approx(8.03e9, rel=1e-3)
    assert SHAPE_8B.adapters(16) == 41_943_040  # as peft says of r=16 on all linear layers
    assert memory.shape_of({"path": str(tmp_path / "nothing")}) is None
    long = {"rope_type": "longrope", "original_max_position_embeddings": 4096}
    assert memory.positions({"path": str(folder_of({**LLAMA_8B, "rope_scaling": long}, 10, tmp_path))}) == 4096
    tiny = memory.shape_of({"path": None, "arch": {
        "hidden_size": 192, "intermediate_size": 512, "layers": 4, "heads": 3, "kv_heads": 3, "max_position": 1024,
        "vocab_size": 2048, "tie_embeddings": True}})
    assert tiny == Shape(192, 512, 4, 192, 192, 2048, True, 1024)


def test_full_training_by_hand() -> None:
    """16 bytes a weight; with autocast's copies 18, less embeddings' which no product takes."""
    need = memory.training(SHAPE_8B, 8e9, How(cuda=True, half=True, tokens=1))
    assert (need.gradients, need.moments) == (32e9, 64e9)
    assert need.weights == 32e9 + 2 * (8e9 - 4096 * 128256)
    eight = memory.training(SHAPE_8B, 8e9, How(cuda=True, half=True, tokens=1, shards=8))
    assert (eight.gradients, eight.moments) == (4e9, 8e9)
    assert eight.weights == 4e9 + 2 * (2 * SHAPE_8B.layer + SHAPE_8B.ends)
    lora = memory.training(SHAPE_8B, 8e9, How(cuda=True, half=True, adapter="lora", tokens=1))
    assert lora.weights == 16e9 + 4 * 41_943_040 and lora.gradients == 4 * 41_943_040
    on_cpu = memory.training(SHAPE_8B, 8e9, How(cuda=False, half=False, adapter="lora", tokens=1))
    assert on_cpu.weights == 32e9 + 4 * 41_943_040


def test_checkpointing_keeps_a_layers_input() -> None:
    """254 KB a token and layer were measured without, 16 with; states in bfloat16 are half as wide."""
    how = How(cuda=True, half=True, tokens=1)
    kept = memory.training(SHAPE_8B, 8e9, how).activations
    assert kept / 32 == pytest.approx(260e3, rel=0.15)
    again = memory.training(SHAPE_8B, 8e9, replace(how, checkpointing=True)).activations
    assert again - 32 * 16384 == pytest.approx(kept / 32, rel=0.02)


MEASURE = """
import json, sys
import numpy as np, torch
from transformers import LlamaConfig, LlamaForCausalLM
from pipeline.lm import folders, forward, prefix
from pipeline.lm.examples import Example
from pipeline.stage import peak_memory
from pipeline.training import checkpoint, gradients, optim, policy, run, loop
from pipeline.training.settings import TrainerSettings

precision, checkpointing = sys.argv[1], sys.argv[2] == "True"
config = LlamaConfig(hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=8,
                     num_key_value_heads=4, vocab_size=4096, tie_word_embeddings=True, use_cache=False,
                     attn_implementation="sdpa")
def fresh():
    model = LlamaForCausalLM(config)
    folders.disable_dropout(model)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    prefix.prepare(model)
    return model
def train(model, groups, tokens, steps):
    optimizer = optim.adamw(model, TrainerSettings())
    task = policy.PolicyTask(run.Parts.load({"module": "pipeline.objectives.simpo"}).objective, None, 0, tokens, 2**27)
    for step in range(steps):
        gradients.accumulate(model, task, groups, step, precision, tokens)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
def groups(count, length):
    rng = np.random.default_rng(0)
    ids = lambda n: rng.integers(3, 4096, n).astype(np.int32)
    return [Example(str(i), ids(length), (ids(length), ids(length))) for i in range(count)]
config.num_hidden_layers = 1
train(fresh(), groups(1, 4), 64, 1)  # what is allocated once: threads, kernels
config.num_hidden_layers = 6
before = int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")
train(fresh(), groups(8, 256), 3072, 2)
print(json.dumps(peak_memory() - before))
"""


@pytest.mark.parametrize(("precision", "checkpointing"), [("float32", False)])
def test_a_process_that_trains_takes_what_is_foretold(precision: str, checkpointing: bool) -> None:
    """Within 15 %: 8 groups of 3 x 256 tokens in micro-batches of 4, two steps of 5.7 M weights, on a CPU."""
    done = subprocess.run([sys.executable, "-c", MEASURE, precision, str(checkpointing)], capture_output=True,
                          text=True, env={**machine.os.environ, "MALLOC_TRIM_THRESHOLD_": "0",
                                          "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    shape = Shape(256, 704, 6, 256, 128, 4096, True)
    how = How(cuda=False, half=precision == "bfloat16", checkpointing=checkpointing, tokens=4 * 3 * 255)
    need = memory.training(shape, float(shape.weights), how)
    print(f"measured {measured / 1e6:.0f} MB, foretold {need.total / 1e6:.0f} MB: {need}")
    assert need.total == pytest.approx(measured, rel=0.15)


def planned(tmp_path: Path, *words: str) -> tuple[dict[str, list[str]], list[str]]:
    """Lines by step and ways out, for Llama-3.1-8B."""
    folder = folder_of(LLAMA_8B, 8_030_000_000, tmp_path)
    composed = compose(["recipe=iterative_dpo", "model=path", f"model.path={folder}", "hardware=cuda",
                        "hardware.memory_gb=80", *words])
    steps, problems = plan.try_expand(composed.config, {})
    assert problems == []
    lines, ways = memory.rows(composed.config, steps)
    return {line[0]: line for line in lines}, ways


@pytest.mark.parametrize("words", [("trainer=lora", "hardware.devices=1"), ("hardware.devices=8",)])
def test_8b_fits_with_adapters_on_one_card_and_in_full_on_eight(words, tmp_path: Path) -> None:
    lines, ways = planned(tmp_path, *words)
    assert ways == [] and {line[2] for line in lines.values()} == {"fits"}
    assert {"sft", "reward", "train[i]", "pref_reference", "generate[i]"} <= set(lines)
    assert lines["generate[i]"][-1] == "68.0 GB"  # 0.85 of the card, while it samples
    assert lines["train[i]"][-1] == "-"  # it sleeps


def test_8b_in_full_on_one_card_is_told_what_would_fit(tmp_path: Path) -> None:
    lines, ways = planned(tmp_path, "hardware.devices=1")
    assert lines["train[i]"][2] == "too much"
    assert math.isclose(float(lines["train[i]"][4].split()[0]), 32.1, abs_tol=0.1)
    (way,) = [way for way in ways if way.startswith("train[i]")]
    assert way.endswith("a device has 80.0 GB; it would fit with trainer=lora")
    assert planned(tmp_path, "hardware.devices=1", "trainer=lora", "hardware.training.gradient_checkpointing=false")[1][
        0].endswith("it would fit with hardware.training.gradient_checkpointing=true")


def test_nothing_is_said_of_a_model_from_scratch_on_a_cpu() -> None:
    composed = compose(["recipe=pco", "hardware=cpu"])
    steps, _ = plan.try_expand(composed.config, {})
    assert memory.rows(composed.config, steps) == ([], [])
