"""Two processes on one machine train what one trains: losses, weights, resume, errors, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from safetensors.torch import load_file

from pipeline import supervisor, tables, worker
from pipeline.build import build
from pipeline.records import Completion, Group, Message
from pipeline.stage import Context
from pipeline.stages import init_model, tokenize

ROOT = Path(__file__).parents[2]
ARCH = {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2, "kv_heads": 2, "max_position": 64,
        "vocab_size": 320}
TRAINER = {"lr": 3e-3, "batch_size": 8, "epochs": 2, "precision": "float32", "grad_clip": 0.5}
RUNTIME = {"threads": 1, "tokens_per_batch": 200, "log_every": 1, "device": "cpu", "checkpoint_every_seconds": None}
PREFERENCE = {"objective": {"module": "pipeline.objectives.pairwise_cringe"}, "trainer": TRAINER}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> SimpleNamespace:
    """A tiny model and 48 tokenised pairs of different lengths."""
    root = tmp_path_factory.mktemp("world")
    tables.write(root / "data" / "pref", [
        Group(f"g{i}", (Message("user", f"Say {i % 7}."),),
              (Completion("It is " + "really " * (i % 4) + f"{i % 7}, friend."), Completion("No idea at all.")))
        for i in range(48)])

    def run(stage, name, settings, **inputs):
        context = Context(build(stage.Settings, settings), stage.Runtime(),
                          {k: (v,) for k, v in inputs.items()}, {}, root / name, 0)
        stage.run(context)
        return context.out

    model = run(init_model, "init", {"arch": ARCH, "chat_template": "roles"}, data=root / "data") / "model"
    ids = run(tokenize, "tokens", {"max_prompt_tokens": 30, "max_completion_tokens": 30}, data=root / "data",
              model=model)
    return SimpleNamespace(root=root, model=model, groups=ids / "pref")


def spec(world, folder: Path, stage="train_preference", settings=PREFERENCE, **runtime) -> Path:
    """step.json in `folder`, as the flow writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "step.json"
    path.write_text(json.dumps({
        "stage": stage, "step": "train", "run": "r", "settings": settings, "runtime": RUNTIME | runtime,
        "inputs": {"model": [str(world.model)], "groups": [str(world.groups)]}, "digests": {}, "work": str(folder),
        "seed": 0, "metrics": str(folder / "metrics.jsonl"), "progress": str(folder / "progress.json")}))
    return path


def start(path: Path, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "pipeline.worker", str(path)], cwd=ROOT,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True, **options)


def finish(path: Path) -> tuple[int, str]:
    process = start(path)
    _, said = process.communicate(timeout=240)
    return process.returncode, said


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(world):
    """One process, for comparison, with a checkpoint at step 5."""
    folder = world.root / "alone"
    assert finish(spec(world, folder, checkpoint_every_steps=5, keep_checkpoints=9))[0] == 0
    return folder


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_are_one(world, alone, tmp_path, strategy):
    """The same losses within 1e-4 at every step, weights as close, one line per step, the same files."""
    two = tmp_path / "two"
    code, said = finish(spec(world, two, processes=2, strategy=strategy))
    assert code == 0, said
    ours, theirs = metrics(two), metrics(alone)
    assert [line["at"] for line in ours] == list(range(1, 13)) == [line["at"] for line in theirs]
    for name in ("loss", "grad_norm", "chosen_logps", "rejected_logps"):
        assert [line[name] for line in ours] == pytest.approx([line[name] for line in theirs], rel=1e-4, abs=1e-4)
    made, expected = (load_file(f / "out" / "model" / "model.safetensors") for f in (two, alone))
    assert made.keys() == expected.keys()
    assert max(float((made[n] - expected[n]).abs().max()) for n in made) < 1e-3
    assert json.loads((two / worker.RESULT).read_text())["counts"]["steps"] == 12
