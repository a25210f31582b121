"""Prefect's page shows what a run does: a real server, a real run of two steps, its artifacts asked for over HTTP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from flows import prefect_page

RUN = """
import sys
from pathlib import Path
from flows.driver import Driver, _run
from pipeline import plan, runs
workspace = Path(sys.argv[1])
world = {"module": "pipeline.formats.jsonl", "sft": "sft.jsonl", "shares": {"unlabeled": 0, "eval": 0}}
rule = {"module": "pipeline.rewards.rule", "function": "pipeline.rewards.rule.fresh_trigrams"}
scores = {"stage": "score", "inputs": {"groups": "data/sft"}}
config = {
    "recipe": {"once": {"data": {"stage": "import_data"}, "scores": scores}},
    "stage": {"import_data": {"settings": {"format": world}, "runtime": {"root": sys.argv[2]}},
              "score": {"settings": {"reward": rule}}},
    "iterations": 1, "seed": 0, "tracking": {}, "engine": {"module": "pipeline.engines.transformers.engine"},
    "hardware": {"grace_seconds": 5.0, "timeout_minutes": 2.0},
}
steps = plan.expand(config)
fresh = {"iteration": 0, "key": None, "state": "waiting", "inputs": []}
facts = [{"name": s.name, "stage": s.stage, **fresh} for s in steps]
run = runs.Run("shown", config, [], {}, facts, runs.RUNNING, 1.0)
runs.save(workspace, run)
_run(Driver(workspace, run, steps, None, False))
"""


def test_keys_are_what_prefect_accepts():
    assert prefect_page.key("My_Run.2", "train[2]") == "my-run-2-train-2"


def test_without_a_server_nobody_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    asked: list[object] = []
    monkeypatch.setattr(prefect_page, "_quietly", asked.append)
    with prefect_page.progress(None, "sft"):
        pass
    prefect_page.link(None, "sft")
    assert asked == []


def test_a_prefect_that_fails_costs_nothing():
    def act(artifacts: object) -> None:
        raise RuntimeError("no server")

    assert prefect_page._quietly(act) is False


def test_the_dashboard_is_known_where_it_was_told_or_answers_for_this_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A server of the standard library that says what a dashboard would; another workspace's is not this one's."""
    class Runs(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the library's name
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"workspace": str(tmp_path), "runs": []}).encode())

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.delenv("ALIGNLOOP_DASHBOARD", raising=False)
    server = HTTPServer(("127.0.0.1", 0), Runs)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(prefect_page, "PORT", server.server_port)
    try:
        assert prefect_page.dashboard(tmp_path) == f"http://localhost:{server.server_port}/"
        assert prefect_page.dashboard(tmp_path / "other") == ""
    finally:
        server.shutdown()
        server.server_close()
    assert prefect_page.dashboard(tmp_path) == "", "nobody is there"
    monkeypatch.setenv("ALIGNLOOP_DASHBOARD", "http://box:4280")
    assert prefect_page.dashboard(tmp_path) == "http://box:4280/"
    monkeypatch.setenv("ALIGNLOOP_DASHBOARD", "http://box:4280/?token=x")
    assert prefect_page.dashboard(tmp_path) == "http://box:4280/?token=x"


def test_another_service_on_the_dashboards_port_is_no_dashboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One that speaks first, and no HTTP."""
    monkeypatch.delenv("ALIGNLOOP_DASHBOARD", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as service:
        def answer() -> None:
            asked, _ = service.accept()
            with asked:
                asked.recv(4096)
                asked.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setattr(prefect_page, "PORT", service.getsockname()[1])
        assert prefect_page.dashboard(tmp_path) == ""


@pytest.mark.slow
def test_a_run_beside_a_server_leaves_progress_links_and_counts(tmp_path: Path, warm: dict[str, str]):
    """`align server up`, a run, then the server's own API: each step's progress at 100, its folder, its counts."""
    workspace, world = tmp_path / "workspace", tmp_path / "world"
    world.mkdir()
    rows = [{"prompt": f"question {i}", "completion": "one two three four"} for i in range(5)]
    (world / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT")} | warm
    server = [sys.executable, "-m", "flows.cli", "server"]
    where = [f"workspace={workspace}", "--port", str(port)]
    up = subprocess.run([*server, "up", *where], env=environment, capture_output=True, text=True, timeout=180)
    assert up.returncode == 0, up.stderr
    try:
        api = f"http://127.0.0.1:{port}/api"
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(workspace), str(world)], capture_output=True, text=True, timeout=300,
            env={**environment, "PREFECT_API_URL": api, "PREFECT_HOME": str(workspace / ".prefect"),
                 "ALIGNLOOP_DASHBOARD": "http://box:4280"})
        assert done.returncode == 0, done.stdout + done.stderr
        found = {a["key"]: a for a in _ask(f"{api}/artifacts/latest/filter")}
    finally:
        subprocess.run([*server, "down", *where], env=environment, capture_output=True, timeout=60)
    assert f"page      http://127.0.0.1:{port}/runs/flow-run/" in done.stdout
    assert found["shown-scores-progress"]["data"] == 100.0
    assert (workspace / "artifacts" / "score").as_uri() in found["shown-scores-artifact"]["data"]
    assert found["shown-scores-page"]["data"] == (
        "[shown: scores](http://box:4280/#/run/shown?step=scores)")
    counts = {row["what"]: row["number"] for row in json.loads(found["shown-data-counts"]["data"])}
    assert counts["sft"] == 5


def _ask(url: str) -> list[dict]:
    request = urllib.request.Request(url, data=b"{}", headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())
