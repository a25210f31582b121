"""A smaller world and the command line, for tests of whole runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import plan, runs

ROOT = Path(__file__).parent.parent.parent
ROWS = {"sft": 96, "pref": 64, "unlabeled": 96, "eval": 12}


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of the built-in world: enough for every stage, too little to learn much."""
    folder = tmp_path_factory.mktemp("world")
    for name, number in ROWS.items():
        lines = (ROOT / "data" / "minifarm" / f"{name}.jsonl").read_text().splitlines()[:number]
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.fixture(scope="session")
def small_run(small_world: Path, tiny_model: Path, vllm_service) -> list[str]:
    """Overrides that make any recipe small: the test run's tiny model and its one vLLM server."""
    return [
        f"data.root={small_world}",
        "model=path",
        f"model.path={tiny_model}",
        "model.max_prompt_tokens=120",
        "model.max_completion_tokens=100",
        "sampling.prompts_per_iteration=24",
        "sampling.max_tokens=48",
        "evaluation.sampling.n=1",
        "trainer.sft.epochs=1",
        "trainer.reward.epochs=1",
        "trainer.preference.epochs=1",
        f"engine.url={vllm_service.url}",
        "engine.max_sequences=64",
    ]


@pytest.fixture(scope="session")
def command() -> Callable[..., list[str]]:
    """command("run", ...) -> the argv of `align run ...`."""
    return lambda *words: [sys.executable, "-m", "flows.cli", *words]


@pytest.fixture(scope="session")
def environment(vllm_service) -> dict[str, str]:
    return {**os.environ, **vllm_service.environment, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def align(
    environment: dict[str, str], command: Callable[..., list[str]]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """align("run", "recipe=pco", ...) -> the finished process, its output as text."""

    def call(*words: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command(*words), capture_output=True, text=True, env=environment, timeout=timeout)

    return call


@pytest.fixture
def two_steps(tmp_path: Path) -> Callable[..., Path]:
    """two_steps(function=...) -> a workspace whose run "shown" still has both of its steps to do: rows are imported,
    then scored by the rule `function`. No model, no engine."""

    def make(function: str = "pipeline.rewards.rule.fresh_trigrams") -> Path:
        workspace, world = tmp_path / "workspace", tmp_path / "world"
        world.mkdir(exist_ok=True)
        rows = [{"prompt": f"question {i}", "completion": "one two three four"} for i in range(5)]
        (world / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        rows_of = {"module": "pipeline.formats.jsonl", "sft": "sft.jsonl", "shares": {"unlabeled": 0, "eval": 0}}
        config = {
            "recipe": {"once": {"data": {"stage": "import_data"},
                                "scores": {"stage": "score", "inputs": {"groups": "data/sft"}}}},
            "stage": {"import_data": {"settings": {"format": rows_of}, "runtime": {"root": str(world)}},
                      "score": {"settings": {"reward": {"module": "pipeline.rewards.rule", "function": function}}}},
            "iterations": 1, "seed": 0, "tracking": {}, "engine": {"module": "pipeline.engines.transformers.engine"},
            "hardware": {"grace_seconds": 5.0, "timeout_minutes": 2.0}, "choices": {"recipe": "two steps"},
        }
        fresh = {"iteration": 0, "key": None, "state": "waiting", "inputs": []}
        steps = [{"name": s.name, "stage": s.stage, **fresh} for s in plan.expand(config)]
        runs.save(workspace, runs.Run("shown", config, [], {}, steps, runs.RUNNING, 1.0))
        return workspace

    return make


@pytest.fixture
def drive() -> Callable[..., subprocess.Popen[str]]:
    """drive(workspace, PREFECT_API_URL=...) -> the driver's process for the run "shown", its output as text."""

    def call(workspace: Path, **environment: str) -> subprocess.Popen[str]:
        given = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT")}
        paths = os.pathsep.join([str(ROOT), str(workspace.parent / "world")])
        return subprocess.Popen([sys.executable, "-m", "flows.driver", str(workspace), "shown", ""], text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                env={**given, "PYTHONPATH": paths, **environment})

    return call
