"""Two processes on one machine train what one trains: losses, weights, resume, errors, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from safetensors.torch import load_file

from pipeline import columns, supervisor, tables, worker
from pipeline.columns import Source
from pipeline.config import build
from pipeline.records import Completion, Group, Message
from pipeline.stage import Context, Reporter
from pipeline.stages import init_model, tokenize, train_preference
from tests import given

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
        context = Context(build(stage.Settings, settings), stage.STAGE.runtime(),
                          {k: (v,) for k, v in inputs.items()}, {k: (str(v),) for k, v in inputs.items()},
                          root / name, 0)
        stage.run(context)
        return context.out

    model = run(init_model, "init", {"arch": ARCH, "chat_template": "roles"}, data=root / "data") / "model"
    ids = run(tokenize, "tokens", {"max_prompt_tokens": 30, "max_completion_tokens": 30}, data=root / "data",
              model=model)
    reference = given.side_table(root / "logps", Source(ids / "pref", "g"), columns.LOGP,
                                 [(-10.0 - i % 3, -11.0 - i % 3) for i in range(48)])
    return SimpleNamespace(root=root, model=model, groups=ids / "pref", reference=reference)


def spec(world, folder: Path, stage="train_preference", settings=PREFERENCE, **runtime) -> Path:
    """step.json in `folder`, as the flow writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "step.json"
    path.write_text(json.dumps({
        "stage": stage, "step": "train", "run": "r", "settings": settings, "runtime": RUNTIME | runtime,
        "inputs": {"model": [str(world.model)], "groups": [str(world.groups)],
                   "reference": [str(world.reference)]},
        "digests": {"model": ["m"], "groups": ["g"], "reference": ["r"]}, "work": str(folder),
        "seed": 0, "metrics": str(folder / "metrics.jsonl"), "progress": str(folder / "progress.json")}))
    return path


@pytest.fixture(scope="module")
def start(warm):
    """start(path) -> the worker of that spec, running: a fork of a warm process, as are those that torchrun starts."""
    def begin(path: Path) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-m", "pipeline.worker", str(path)], cwd=ROOT, text=True,
                                env={**os.environ, **warm, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)

    return begin


@pytest.fixture(scope="module")
def finish(start):
    """finish(path) -> the worker's exit code and what it said."""
    def wait(path: Path) -> tuple[int, str]:
        process = start(path)
        _, said = process.communicate(timeout=240)
        return process.returncode, said

    return wait


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(world) -> Path:
    """What one process makes of it."""
    folder = world.root / "alone"
    in_process(world, folder)
    return folder


def in_process(world, folder: Path, settings=PREFERENCE) -> None:
    report = Reporter(step="train", metrics_path=folder / "metrics.jsonl")
    folder.mkdir(exist_ok=True)
    train_preference.run(Context(
        build(train_preference.Settings, settings), build(train_preference.STAGE.runtime, RUNTIME),
        {"model": (world.model,), "groups": (world.groups,), "reference": (world.reference,)},
        {"model": ("m",), "groups": ("g",), "reference": ("r",)}, folder, 0, report))


def weights(folder: Path) -> dict:
    return load_file(folder / "out" / "model" / "model.safetensors")


def apart(one: Path, other: Path) -> float:
    """The largest difference between the weights of two runs."""
    made, expected = weights(one), weights(other)
    assert made.keys() == expected.keys()
    return max(float((made[n] - expected[n]).abs().max()) for n in made)


def check_same_course(one: Path, other: Path) -> None:
    ours, theirs = metrics(one), metrics(other)
    assert [line["at"] for line in ours] == list(range(1, 13)) == [line["at"] for line in theirs]
    for name in ("loss", "grad_norm", "chosen_logps", "rejected_logps"):
        assert [line[name] for line in ours] == pytest.approx([line[name] for line in theirs], rel=1e-4, abs=1e-4)
    assert apart(one, other) < 1e-3


def test_two_copies_are_one_process(world, finish, tmp_path):
    """The same losses within 1e-4 at every step, weights as close, one line per step: of a loss that compares the
    groups of the whole batch and carries a shift along, so that both processes have to know all of it.
    """
    settings = {"objective": {"module": "pipeline.objectives.bco"}, "trainer": TRAINER}
    in_process(world, tmp_path / "one", settings)
    code, said = finish(spec(world, tmp_path / "two", settings=settings, processes=2, strategy="ddp"))
    assert code == 0, said
    check_same_course(tmp_path / "two", tmp_path / "one")
    assert json.loads((tmp_path / "two" / worker.RESULT).read_text())["counts"]["steps"] == 12


@pytest.fixture(scope="module")
def sharded(world, finish) -> Path:
    """Two processes with sharded weights, a checkpoint at steps 5 and 10."""
    folder = world.root / "sharded"
    code, said = finish(spec(world, folder, processes=2, strategy="fsdp2", checkpoint_every_steps=5))
    assert code == 0, said
    return folder


def test_sharded_weights_are_one_process(alone, sharded):
    check_same_course(sharded, alone)


@pytest.mark.parametrize("kind", ["none", pytest.param("lora", marks=pytest.mark.long), "qlora"])
def test_sharded_with_drawn_negatives(world, finish, tmp_path, kind):
    """Candidates scored without gradient on a stem with one; frozen (of 4 bits, too) and learning weights side by side
    in a shard; adapter and merged model written by one.
    """
    if kind == "qlora":
        pytest.importorskip("bitsandbytes", reason="make setup EXTRAS=qlora")
    settings = {"objective": {"module": "pipeline.objectives.rnce"},
                "negatives": {"module": "pipeline.negatives.mc", "m": 1},
                "trainer": TRAINER | {"adapter": {"kind": kind, "r": 4}}}
    in_process(world, tmp_path / "one", settings)
    code, said = finish(spec(world, tmp_path / "two", settings=settings, processes=2, strategy="fsdp2"))
    assert code == 0, said
    check_same_course(tmp_path / "two", tmp_path / "one")
    assert (tmp_path / "two" / "out" / "adapter" / "adapter_config.json").is_file() == (kind != "none")


def check_gone_on(work: Path, alone: Path) -> None:
    """Steps 6 to 12 of `work` are those of one process."""
    ours, theirs = metrics(work), metrics(alone)[5:]
    assert [line["at"] for line in ours] == list(range(6, 13))
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in ours] == pytest.approx([line[name] for line in theirs], rel=1e-4, abs=1e-4)
    assert apart(work, alone) < 1e-3


def test_each_process_writes_its_own_rows(alone, sharded):
    """Half of the weights and of their two moments each; together what one process writes."""
    made = sharded / "checkpoints" / "step-00000005"
    sizes = {path.name: path.stat().st_size for path in made.glob("*.safetensors")}
    assert len(sizes) == 6
    whole = sum(tensor.nbytes for tensor in weights(alone).values())
    for rank in ("00000-of-00002", "00001-of-00002"):
        assert 0.45 * whole < sizes[f"model.{rank}.safetensors"] < 0.55 * whole + 4096
        assert 0.9 * whole < sizes[f"optimizer.{rank}.safetensors"] < 1.1 * whole + 8192


def test_a_checkpoint_of_two_goes_on_with_one(world, alone, sharded, tmp_path):
    shutil.copytree(sharded / "checkpoints" / "step-00000005", tmp_path / "work" / "checkpoints" / "step-00000005")
    in_process(world, tmp_path / "work")
    check_gone_on(tmp_path / "work", alone)


def test_a_checkpoint_of_two_goes_on_with_four(world, alone, sharded, finish, tmp_path):
    shutil.copytree(sharded / "checkpoints" / "step-00000005", tmp_path / "work" / "checkpoints" / "step-00000005")
    code, said = finish(spec(world, tmp_path / "work", processes=4, strategy="fsdp2"))
    assert code == 0, said
    check_gone_on(tmp_path / "work", alone)


def test_killed_and_started_again_in_the_same_layout(world, sharded, finish, tmp_path):
    """torchrun killed -9 behind a checkpoint, as threads begin with the next: its processes go too, and the next try
    ends in the same bytes.
    """
    work = tmp_path / "work"
    path = spec(world, work, processes=2, strategy="fsdp2", checkpoint_every_steps=5)
    command = supervisor.command_line([sys.executable, "-m", "pipeline.worker", str(path)], log=work / "log", grace=5)
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    wait_for(lambda: (work / "checkpoints" / ".step-00000010.tmp").exists() or process.poll() is not None)
    (torchrun,) = psutil.Process(process.pid).children()
    ranks = [p for p in torchrun.children() if "pipeline.worker" in " ".join(p.cmdline())]
    torchrun.send_signal(signal.SIGKILL)
    assert process.wait(60) == 137 and len(ranks) == 2
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in ranks)
    assert not (work / worker.RESULT).exists() and (work / "checkpoints" / "step-00000005").exists()
    code, said = finish(path)
    assert code == 0, said
    assert [line["at"] for line in metrics(work)] == list(range(1, 13)), "each step is reported once"
    for name in ("model/model.safetensors", "model/config.json"):
        assert (work / "out" / name).read_bytes() == (sharded / "out" / name).read_bytes()


def test_a_users_mistake_is_said_once_by_all(world, finish, tmp_path):
    settings = {"objective": {"module": "pipeline.objectives.alphapo"},
                "trainer": TRAINER | {"adapter": {"kind": "lora", "target_modules": ["query"]}}}
    code, _ = finish(spec(world, tmp_path, settings=settings, processes=2, strategy="ddp"))
    (problem,) = json.loads((tmp_path / worker.PROBLEMS).read_text())
    assert code == 2 and "target_modules: ['query'] fits no layer" in problem


def test_two_nodes(world, alone, start, tmp_path):
    """The worker once per node with the same spec; whichever comes to be the first one writes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        rendezvous = f"127.0.0.1:{free.getsockname()[1]}"
    path = spec(world, tmp_path, nodes=2, rendezvous=rendezvous, strategy="ddp")
    nodes = [start(path), start(path)]
    said = [node.communicate(timeout=240)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    check_same_course(tmp_path, alone)


def wait_for(done, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "nothing came of it"
        time.sleep(0.01)


def test_two_processes_score_as_one(world, finish, tmp_path):
    """1,100 prompts in two parts are three slices: the same bytes, though two processes took them in turn."""
    made = list(tables.read(world.groups))
    groups = [replace(made[i % 48], id=f"n{i}") for i in range(1100)]
    tables.write(tmp_path / "groups", groups, part_size=600)
    settings = {"reward": {"module": "pipeline.rewards.likelihood"},
                "also": {"fresh": {"module": "pipeline.rewards.repetition"}}}

    def spec_of(folder: Path, **runtime) -> Path:
        folder.mkdir()
        path, own = folder / "step.json", {key: RUNTIME[key] for key in ("threads", "device")}
        path.write_text(json.dumps({
            "stage": "score", "step": "score", "run": "r", "settings": settings,
            "runtime": {"models": {**own, **runtime}}, "inputs": {
                "policy": [str(world.model)], "groups": [str(tmp_path / "groups")]},
            "digests": {"policy": ["m"], "groups": ["g"]}, "work": str(folder), "seed": 0,
            "metrics": str(folder / "metrics.jsonl"), "progress": str(folder / "progress.json")}))
        return path

    for name, runtime in (("one", {}), ("two", {"processes": 2, "strategy": "ddp"})):
        code, said = finish(spec_of(tmp_path / name, **runtime))
        assert code == 0, said
    parts = [sorted((tmp_path / name / "out" / "scores").glob("*.parquet")) for name in ("one", "two")]
    assert [part.read_bytes() for part in parts[0]] == [part.read_bytes() for part in parts[1]]
    assert len(parts[0]) == 2
    facts = [json.loads((tmp_path / name / "result.json").read_text())["counts"] for name in ("one", "two")]
    assert facts[0] == facts[1]
    assert len(list((tmp_path / "two" / "slices").iterdir())) == 3
