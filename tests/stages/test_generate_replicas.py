"""Two real servers of one owner, and what kills them in mid-run: nothing lost, nothing twice, no process left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from pipeline import tables
from pipeline.engines.vllm import client, service
from pipeline.records import Group, Message

pytestmark = pytest.mark.slow
OWNER = """
import json, sys, time
from pathlib import Path
from pipeline.engines.vllm import service as v
service = v.start(Path(sys.argv[1]), Path(sys.argv[2]), v.Settings(replicas=2, max_sequences=16))
print(json.dumps(service.environment), flush=True)
service.wait_ready(400)
print("ready", flush=True)
time.sleep(3600)
"""


@dataclass(frozen=True)
class Fleet:
    """The servers' owner, a process of its own, and what a stage needs to use them."""

    owner: subprocess.Popen[str]
    environment: dict[str, str]
    log: Path

    @property
    def urls(self) -> list[str]:
        return self.environment[service.URL].split(",")

    @property
    def keepers(self) -> list[psutil.Process]:
        return [psutil.Process(int(pid)) for pid in self.environment[service.PIDS].split(",")]

    def server(self, number: int) -> psutil.Process:
        """The API server's process."""
        (supervisor,) = self.keepers[number].children()
        (server,) = supervisor.children()
        return server

    def serves(self, number: int) -> bool:
        return service.answers(self.urls[number], self.environment[service.KEY])


def until(condition: Callable[[], object], seconds: float, say: Callable[[], str] = lambda: "") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, say()
        time.sleep(0.05)


def gone(processes: list[psutil.Process]) -> bool:
    """Seconds later at most; a zombie is gone, only nobody has asked for its exit code."""
    _, left = psutil.wait_procs(processes, timeout=40)
    return not [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def fleet(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two servers; the last test of this file ends them."""
    pytest.importorskip("vllm")
    log = tmp_path_factory.mktemp("fleet") / "vllm.log"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("ALIGNLOOP_ENGINE")}
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tiny_model), str(log)], stdout=subprocess.PIPE,
                             text=True, env=clean)
    try:
        assert owner.stdout is not None
        environment = json.loads(owner.stdout.readline())
        assert owner.stdout.readline() == "ready\n", log.read_text()[-3000:]
        yield Fleet(owner, environment, log)
    finally:
        owner.kill()
        owner.wait()


def prompts(number: int) -> list[Group]:
    ids = [(1, 4, *(20 + (i * 7 + k) % 250 for k in range(8)), 5) for i in range(number)]
    return [Group(f"p{i}", (Message("user", f"question {i}"),), prompt_ids=ids[i]) for i in range(number)]


@dataclass(frozen=True)
class Stage:
    """The generate stage in a process of its own."""

    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "work" / "out" / "groups"

    @property
    def said(self) -> str:
        return (self.folder / "worker.log").read_text()

    @property
    def result(self) -> dict:
        return json.loads((self.folder / "work" / "result.json").read_text())

    def parts(self) -> int:
        return len(tables.parts(self.out))

    def rows(self) -> list[Group]:
        return list(tables.read(self.out))

    def waits_for(self, url: str) -> bool:
        """Is a call to that server open? One is closed as soon as its last answer is there."""
        connections = psutil.Process(self.process.pid).net_connections("tcp")
        return any(c.raddr and c.raddr.port == urlsplit(url).port and c.status == psutil.CONN_ESTABLISHED
                   for c in connections)

    def done(self, seconds: float = 300) -> Stage:
        assert self.process.wait(seconds) == 0, self.said
        return self


@pytest.fixture
def start(tiny_model: Path, tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    """start(environment, prompts, temperatures, max_tokens, **engine) -> the stage, running."""
    started: list[Stage] = []

    def begin(environment: dict[str, str], number: int, temperatures=(0.3, 0.9), max_tokens=64, **engine) -> Stage:
        folder = tmp_path / f"stage{len(started)}"
        folder.mkdir()
        tables.write(folder / "prompts", prompts(number))
        name = "pipeline.engines.vllm"
        spec = {
            "stage": "generate", "run": "test", "step": "generate", "seed": 5, "work": str(folder / "work"),
            "settings": {"engine": name, "dtype": "float32", "n": 2, "max_tokens": max_tokens,
                         "temperatures": list(temperatures)},
            "runtime": {"engine": {"module": name, "dtype": "float32", "concurrency": 32, **engine}, "part_size": 8},
            "inputs": {"model": [str(tiny_model)], "prompts": [str(folder / "prompts")]},
            "digests": {"model": ["d"], "prompts": ["p"]},
            "metrics": str(folder / "metrics.jsonl"), "progress": str(folder / "progress.json"),
        }
        (folder / "step.json").write_text(json.dumps(spec))
        log = (folder / "worker.log").open("w")
        process = subprocess.Popen([sys.executable, "-m", "pipeline.worker", str(folder / "step.json")], stdout=log,
                                   stderr=log, env={**os.environ, **environment})
        started.append(Stage(process, folder))
        return started[-1]

    yield begin
    for stage in started:
        if stage.process.poll() is None:
            stage.process.kill()
            stage.process.wait()


def stop_in_the_act(fleet: Fleet, number: int, stage: Stage) -> psutil.Process:
    """The server, suspended while the stage has calls to it open that half a second does not end."""
    server = fleet.server(number)

    def owes() -> bool:
        assert stage.process.poll() is None, stage.said
        server.suspend()
        owed = False
        try:
            time.sleep(0.5)
            owed = stage.waits_for(fleet.urls[number])
        finally:
            if not owed:
                server.resume()
        return owed

    until(owes, 120, lambda: stage.said)
    return server


def test_two_replicas_give_the_table_of_one(fleet: Fleet, start):
    one = {**fleet.environment, service.URL: fleet.urls[0]}
    alone, both = start(one, 60).done(), start(fleet.environment, 60).done()
    assert [row.id for row in both.rows()] == [f"p{i}" for i in range(60)]
    assert both.rows() == alone.rows()
    counts = both.result["counts"]
    assert (counts["replicas"], counts["batch_invariant"], counts["server_losses"]) == (2, 0, 0)
    assert alone.result["counts"]["replicas"] == 1


def test_kill_9_of_one_server_and_the_other_goes_on(fleet: Fleet, start):
    whole = start(fleet.environment, 240).done()
    stage = start(fleet.environment, 240)
    until(lambda: stage.parts() >= 1, 120, lambda: stage.said)
    server = stop_in_the_act(fleet, 0, stage)
    everything = server.children(recursive=True)
    fleet.keepers[0].suspend()  # so that it does not start it anew before the other one has done the work
    try:
        server.kill()
        assert stage.done().rows() == whole.rows()
        assert not fleet.serves(0)
    finally:
        fleet.keepers[0].resume()
    assert stage.result["counts"]["server_losses"] == 1
    assert stage.result["dropped"] == {}
    assert f"the vLLM server at {fleet.urls[0]} was lost (" in stage.said
    assert f"(whole log: {fleet.log})" in stage.said
    assert gone(everything)
    until(lambda: fleet.serves(0), 300)  # its keeper has started it anew


def test_a_server_that_falls_silent_is_lost_after_the_time_set(fleet: Fleet, start):
    """Stopped, not killed: its connections stay open, as those of a node that has vanished from the network do."""
    whole = start(fleet.environment, 160).done()
    stage = start(fleet.environment, 160, silence_timeout=6)
    until(lambda: stage.parts() >= 1, 120, lambda: stage.said)
    server = stop_in_the_act(fleet, 1, stage)
    try:
        stage.done()
    finally:
        server.resume()
    assert stage.rows() == whole.rows()
    assert f"{fleet.urls[1]}: no sign of life for 6 s" in stage.said
    assert stage.result["counts"]["server_losses"] >= 1
    until(lambda: fleet.serves(1), 60)


def test_kill_9_of_a_keeper_then_of_the_owner_leaves_no_process_and_says_so(fleet: Fleet, start):
    """The stage goes on with the server whose keeper lives, and ends once the owner has taken that one with it."""
    stage = start(fleet.environment, 4000)
    until(lambda: stage.parts() >= 2, 120, lambda: stage.said)
    first, second = ([keeper, *keeper.children(recursive=True)] for keeper in fleet.keepers)
    assert min(len(first), len(second)) >= 4  # keeper, supervisor, server, engine
    fleet.keepers[0].send_signal(signal.SIGKILL)
    assert gone(first[1:])
    until(lambda: "going on without it" in stage.said, 60, lambda: stage.said)
    assert "is lost (its keeper has ended)" in stage.said
    before = stage.parts()
    until(lambda: stage.parts() >= before + 3, 120, lambda: stage.said)
    fleet.owner.send_signal(signal.SIGKILL)
    fleet.owner.wait()
    assert gone(second)
    assert stage.process.wait(60) == 1
    assert all(f"the vLLM server at {url} is lost (its keeper has ended)" in stage.said for url in fleet.urls)
    rows = stage.rows()
    assert [row.id for row in rows] == [f"p{i}" for i in range(8 * stage.parts())]
    assert all(len(row.completions) == 4 for row in rows)


def test_two_runs_at_one_server_are_told_apart(use_vllm, make_model, start, tmp_path: Path):
    """Another run loads its weights in mid-run: this one ends, and nothing of theirs is in its table."""
    whole = start(use_vllm.environment, 400).done()
    stage = start(use_vllm.environment, 400)
    until(lambda: stage.parts() >= 2, 120, lambda: stage.said)
    other = make_model(tmp_path / "other", seed=1)
    client.load(client.connect(use_vllm.url, use_vllm.key), other)
    assert stage.process.wait(60) == 2, stage.said
    (problem,) = json.loads((stage.folder / "work" / "problems.json").read_text())
    assert problem.startswith(f"engine.url: another run loaded weights into the vLLM server at {use_vllm.url} while")
    assert "Traceback" not in stage.said
    assert 2 <= stage.parts() < whole.parts()
    assert stage.rows() == whole.rows()[: 8 * stage.parts()]
