"""Log-probs that several processes share: two give the bytes of one, in every stage that reads frozen models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import tables, worker
from pipeline.records import Completion, Group, Message
from pipeline.training import frozen
from pipeline.training.gradients import World
from tests import given

ROOT = Path(__file__).parents[2]
RUNTIME = {"threads": 1, "tokens_per_batch": 500, "device": "cpu"}
FLOAT = {"precision": "float32"}


def groups(number: int) -> list[Group]:
    """Pairs and, every third, triples of different lengths."""
    def completion(i: int, k: int) -> Completion:
        ids = tuple(20 + (7 * i + 3 * k + t) % 290 for t in range(1 + (i + 5 * k) % 9))
        return Completion("", (*ids, 2), scores={"gold": float(k)}, sample=k)

    return [Group(f"g{i}", (Message("user", "s"),), tuple(completion(i, k) for k in range(2 + (i % 3 == 0))),
                  (1, 4, 40 + i % 9, 5)) for i in range(number)]


@pytest.fixture(scope="module")
def world(make_model, tmp_path_factory) -> SimpleNamespace:
    """Two models, 2,100 groups, which are three parts of log-probs, and 64 groups."""
    root = tmp_path_factory.mktemp("frozen")
    return SimpleNamespace(
        policy=make_model(root / "policy", seed=1), reference=make_model(root / "reference", seed=2),
        many=given.write(root / "many", groups(2100)).path, few=given.write(root / "few", groups(64)).path)


@pytest.fixture
def both(warm, tmp_path) -> Callable[..., tuple[Path, Path]]:
    """both(stage, settings, inputs) -> the results of one process and of two, which share the work."""
    def start(folder: Path, spec: dict, runtime: dict) -> Path:
        folder.mkdir(exist_ok=True)
        path = folder / "step.json"
        path.write_text(json.dumps(spec | {
            "step": "s", "run": "r", "runtime": RUNTIME | runtime, "work": str(folder), "seed": 0,
            "metrics": str(folder / "metrics.jsonl"), "progress": str(folder / "progress.json")}))
        done = subprocess.run([sys.executable, "-m", "pipeline.worker", str(path)], cwd=ROOT, text=True, timeout=240,
                              env={**os.environ, **warm, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
        assert done.returncode == 0, done.stderr
        return folder

    def run(stage: str, settings: dict, **inputs: Path) -> tuple[Path, Path]:
        spec = {"stage": stage, "settings": settings, "inputs": {name: [str(p)] for name, p in inputs.items()},
                "digests": {name: [str(p)] for name, p in inputs.items()}}
        one, two = start(tmp_path / "one", spec, {}), start(tmp_path / "two", spec, {"processes": 2, "strategy": "ddp"})
        assert not (one / "torchrun").exists() and (two / "torchrun").is_dir()
        return one, two

    return run


def written(work: Path) -> dict[str, bytes]:
    """Path -> content of all that is in a result."""
    return {str(p.relative_to(work)): p.read_bytes() for p in (work / "out").rglob("*") if p.is_file()}


def counts(work: Path) -> dict[str, float]:
    return json.loads((work / worker.RESULT).read_text())["counts"]


def test_reference_logprobs(world, both):
    """Three parts are shared two at a time. What a killed one had finished stays, and the rest comes out the same."""
    inputs = {"model": world.policy, "groups": world.many}
    one, two = both("reference_logprobs", FLOAT, **inputs)
    made = written(one)
    assert len(made) == 3 and written(two) == made
    assert counts(one) == counts(two) == {"groups": 2100}
    first, *others = tables.parts(two / "out" / "logps")
    for part in others:
        part.unlink()
    kept = first.stat().st_mtime_ns
    both("reference_logprobs", FLOAT, **inputs)
    assert written(two) == made and first.stat().st_mtime_ns == kept


def test_diagnose(world, both):
    settings = {"score": "gold", **FLOAT, "negatives": {"module": "pipeline.negatives.mc", "m": 1}}
    one, two = both("diagnose", settings, model=world.policy, reference=world.reference, answers=world.few,
                    baseline=world.few, trained=world.few)
    assert written(one) == written(two) and counts(one) == counts(two)
    assert json.loads((two / "out" / "diagnostics.json").read_text())["trained_pairs"]["pairs"] == 64


def test_pair_logps(world, both):
    one, two = both("pair_logps", FLOAT, model=world.policy, reference=world.reference, seen=world.few,
                    held_out=world.few)
    assert len(written(one)) == 3 and written(one) == written(two) and counts(one) == counts(two)


def test_weigh_prompts(world, both, tmp_path):
    """The mean states of 40 prompts, on which the classifier stands."""
    judged = [replace(group, completions=group.completions[:1], label=i % 2 == 0,
                      prompt_ids=(1, 4, *range(30, 40 + i), 5)) for i, group in enumerate(groups(40))]
    one, two = both("weigh_prompts", {}, model=world.policy, groups=given.write(tmp_path / "judged", judged).path)
    assert written(one) == written(two) and counts(one) == counts(two)
    assert counts(two)["weighed"] == 20 and counts(two)["weight_mean"] != 1.0


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_micro_batch_is_one_processs(size):
    """Of as many tables as there are processes each has as many: 7 of each table, whoever begins."""
    shares = [[range(7)[frozen.share(World(rank, size), turn)] for turn in range(size)] for rank in range(size)]
    assert [sum(map(len, of_rank)) for of_rank in shares] == [7] * size
    assert all(sorted(i for own in of_table for i in own) == [*range(7)] for of_table in zip(*shares, strict=True))
