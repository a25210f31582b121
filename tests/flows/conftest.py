"""A smaller world and the command line, for tests of whole runs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.prefect_side import _answers as answers
from flows.prefect_side import environment as prefect_environment
from pipeline import plan, runs, supervisor
from tests.flows import launched

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
        "trainer=scratch",
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
            "iterations": 1, "seed": 0, "tracking": {}, "model": {},
            "engine": {"module": "pipeline.engines.transformers"},
            "hardware": {"grace_seconds": 5.0, "timeout_minutes": 2.0, "devices": None,
                         "training": {"device": "cpu", "processes": 1}}, "choices": {"recipe": "two steps"},
        }
        fresh = {"iteration": 0, "key": None, "state": "waiting", "inputs": []}
        steps = [{"name": s.name, "stage": s.stage, **fresh} for s in plan.expand(config)]
        runs.save(workspace, runs.Run("shown", config, [], {}, steps, runs.RUNNING, 1.0))
        return workspace

    return make


@pytest.fixture
def drive(warm: dict[str, str]) -> Callable[..., subprocess.Popen[str]]:
    """drive(workspace, PREFECT_API_URL=...) -> the driver's process for the run "shown", its output as text."""
    return lambda workspace, **environment: launched.drive(workspace, {**warm, **environment}, warm["PYTHONPATH"])


@pytest.fixture
def held(two_steps: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Path]:
    """A workspace whose second step goes on as long as the file, the second path, is there."""
    return launched.slow(two_steps, monkeypatch, tmp_path)


@pytest.fixture
def drive_cold(prefect: dict[str, str]) -> Callable[..., subprocess.Popen[str]]:
    """As `drive`, but each step of the run is a process of its own that starts cold, as a user's does."""
    return lambda workspace, **environment: launched.drive(workspace, {**prefect, **environment})
