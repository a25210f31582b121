"""A smaller world and the command line, for tests of whole runs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.environment import prefect_environment
from flows.server import _answers as answers
from pipeline import supervisor

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
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Prefect server for many runs, as `align server up` gives one; a run without it starts one of its own, for 8 s
    of processor time."""
    place = tmp_path_factory.mktemp("prefect")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, **prefect_environment(place), "PREFECT_SERVER_API_PORT": str(port)}
    server = [str(Path(sys.executable).with_name("prefect")), "server", "start", "--no-ui", "--no-services"]
    log = place / "server.log"
    process = subprocess.Popen(supervisor.command_line(server, log=log, grace=5), env=environment)
    deadline = time.monotonic() + 120
    while not answers(f"http://127.0.0.1:{port}"):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    yield {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    process.terminate()
    process.wait(60)


@pytest.fixture(scope="session")
def cold(vllm_service) -> dict[str, str]:
    """The environment of a run as a user starts one: every process imports what it needs."""
    return {**os.environ, **vllm_service.environment, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def environment(cold: dict[str, str], warm: dict[str, str], prefect: dict[str, str]) -> dict[str, str]:
    """Of runs whose processes and whose Prefect server are not what is tested: the same, but started already."""
    return {**cold, **warm, **prefect}


@pytest.fixture(scope="session")
def align(
    environment: dict[str, str], command: Callable[..., list[str]]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """align("run", "recipe=pco", ...) -> the finished process, its output as text."""

    def call(*words: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command(*words), capture_output=True, text=True, env=environment, timeout=timeout)

    return call
