"""Keys of every kind, in a run that has every part that could tell them: they are in no file, command line or page."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import psutil
import pytest
from fastapi.testclient import TestClient

from flows.dashboard.app import make_app
from pipeline import runs
from tests.chaos import canaries, profiles, small
from tests.rewards.judges.server import serving

pytestmark = pytest.mark.slow
PAGES = ("runs", "runs/small", "runs/small/metrics", "runs/small/iterations", "runs/small/tables", "compare?run=small")


def test_the_search_for_keys_finds_one(tmp_path):
    """In a database's bytes, in a file's name, on a command line."""
    (tmp_path / "database").write_bytes(b"\0\1" + canaries.KEYS["HF_TOKEN"].encode() + b"\0")
    (tmp_path / canaries.KEYS["WANDB_API_KEY"]).touch()
    assert sorted(line.split(":")[0] for line in canaries.holding(canaries.KEYS, tmp_path)) == [
        "HF_TOKEN", "WANDB_API_KEY"]
    assert canaries.shown({"own": psutil.Process().cmdline()[0]}) != []


@pytest.fixture
def hook() -> Iterator[tuple[str, list[bytes]]]:
    """An address that is a secret, and what was sent to it."""
    sent: list[bytes] = []

    class Takes(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Takes)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/canary-webhook-5d2e8b604f3a9c51", sent
    server.shutdown()


@pytest.mark.long
def test_keys_are_nowhere(hook, reference, forking, tidy, tmp_path):
    """Real vLLM, whose own key is new for this run, Prefect's own server and its database, W&B offline, a judge over
    HTTP that is sent its key, and a webhook whose address is one."""
    address, sent = hook
    workspace, log = tmp_path / "ws", tmp_path / "judge.log"
    environment = small.environment(tmp_path, tidy, forking.address, **canaries.KEYS, WANDB_MODE="offline",
                                    HOME=str(tmp_path / "home"), ALIGNLOOP_WEBHOOK_URL=address)
    with serving(log) as url:
        judge = f"evaluation.judge={{module: pipeline.rewards.judge, model: judge, base_url: '{url}'}}"
        argv = small.command(workspace, reference[0], "iterations=1", "tracking=wandb", "notify=webhook", judge,
                             "trainer.preference.lr=0.05",  # so that the answers differ, of which the judge is asked
                             *profiles.PROFILES["vllm"].words)  # a model that vLLM on a CPU serves
        process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        keys, told, engines = {**canaries.KEYS, "webhook": address.rpartition("/")[2]}, set[str](), set[str]()
        listening: set[tuple[str, str]] = set()
        reader = threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True)
        lines: list[str] = []
        reader.start()
        while process.poll() is None:
            found = small.marked(tidy)
            engines |= {own for one in found if (own := _own_key(one))}
            listening |= {(profiles.kind_of(one), host) for one in found for host in _listens(one)}
            told |= set(canaries.shown({**keys, **{f"engine {i}": key for i, key in enumerate(engines)}}))
        reader.join(10)
    output = "".join(lines)
    assert process.returncode == 0, output
    assert len(engines) == 1  # vLLM served, with a key
    keys["engine"] = next(iter(engines))
    assert told == set()
    assert {"engine", "prefect"} <= {kind for kind, _ in listening}
    assert {(kind, host) for kind, host in listening if host != "127.0.0.1"} == set()
    deadline = time.monotonic() + 30  # the run does not wait for its messages
    while not any(json.loads(body)["event"] == "finished" for body in sent):
        assert time.monotonic() < deadline, sent
        time.sleep(0.1)
    assert not any(key in text for key in keys.values() for text in (output, *map(bytes.decode, sent)))
    assert (workspace / ".prefect").is_dir() and (workspace / "wandb").is_dir() and log.stat().st_size
    assert canaries.holding(keys, tmp_path) == []
    page = TestClient(make_app(workspace), base_url="http://localhost:4280")
    steps = [step["name"] for step in runs.load(workspace, "small").steps]
    for path in (*PAGES, *(f"runs/small/log?step={step}&lines=5000" for step in steps)):
        answer = page.get(f"/api/{path}")
        assert answer.status_code == 200, path
        assert not any(key in answer.text for key in keys.values()), path


def _listens(process: psutil.Process) -> set[str]:
    """The addresses at which it takes connections."""
    try:
        return {one.laddr.ip for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN}
    except psutil.Error:
        return set()


def _own_key(process: psutil.Process) -> str:
    """The key that vLLM's server was started with, by its environment, which only its user can read."""
    try:
        return process.environ().get("VLLM_API_KEY", "") if "pipeline.engines.vllm.keeper" in process.cmdline() else ""
    except psutil.Error:
        return ""
