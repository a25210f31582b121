"""A smaller world and the command line, for tests of whole runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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
