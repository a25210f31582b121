"""Prefect is shown what a run does and cannot disturb it: real servers, real runs of two steps, real deaths."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from flows import prefect_side
from pipeline import runs

ROOT = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9/api"  # nothing listens there


def test_keys_are_what_prefect_accepts():
    assert prefect_side.key("My_Run.2", "train[2]") == "my-run-2-train-2"


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
    monkeypatch.setattr(prefect_side, "PORT", server.server_port)
    try:
        assert prefect_side.dashboard(tmp_path) == f"http://localhost:{server.server_port}/"
        assert prefect_side.dashboard(tmp_path / "other") == ""
    finally:
        server.shutdown()
        server.server_close()
    assert prefect_side.dashboard(tmp_path) == "", "nobody is there"
    monkeypatch.setenv("ALIGNLOOP_DASHBOARD", "http://box:4280")
    assert prefect_side.dashboard(tmp_path) == "http://box:4280/"
    monkeypatch.setenv("ALIGNLOOP_DASHBOARD", "http://box:4280/?token=x")
    assert prefect_side.dashboard(tmp_path) == "http://box:4280/?token=x"


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
        monkeypatch.setattr(prefect_side, "PORT", service.getsockname()[1])
        assert prefect_side.dashboard(tmp_path) == ""


@pytest.mark.parametrize("record", [
    "", "[]", "3", '["url"]', '{"url": 3}', '{"url": "no address"}', "\xff" + "[" * 9000])
def test_a_foreign_record_of_the_server_is_none(record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    (tmp_path / ".prefect").mkdir()
    (tmp_path / ".prefect/server.json").write_bytes(record.encode("latin-1"))
    assert prefect_side.running_url(tmp_path) is None
    assert prefect_side.server("status", str(tmp_path), 4200) == 0 and "not running" in capsys.readouterr().out


@pytest.mark.slow
def test_a_prefect_that_is_nowhere_costs_one_note(two_steps, drive):
    workspace = two_steps()
    process = drive(workspace, PREFECT_API_URL=NOWHERE)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    (note,) = (line for line in output.splitlines() if line.startswith("note: "))
    assert note.startswith("note: Prefect does not answer (ConnectError:")
    assert note.endswith("the run goes on without it")
    assert runs.load(workspace, "shown").outcome == "done" and (workspace / "runs/shown/report.md").exists()


@pytest.mark.slow
def test_prefects_temporary_server_may_die_in_mid_run(two_steps, drive, tmp_path, monkeypatch):
    """The second step waits for a file, which is written after the server was killed."""
    go = tmp_path / "go"
    (tmp_path / "world").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "world")
    (tmp_path / "world" / "patient.py").write_text(
        f"import pathlib, time\ndef waits(messages, text):\n    while not pathlib.Path({str(go)!r}).exists():\n"
        "        time.sleep(0.1)\n    return 1.0\n")
    workspace = two_steps("patient.waits")
    process = drive(workspace)
    try:
        server = _temporary_server(process.pid)
        server.kill()
        go.touch()
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, output
    (note,) = (line for line in output.splitlines() if line.startswith("note: "))
    assert note.startswith("note: Prefect does not answer (")
    assert {step["state"] for step in runs.load(workspace, "shown").steps} == {"done"}


@pytest.mark.slow
def test_a_cancel_on_its_page_stops_the_run(two_steps, drive, prefect, tmp_path, monkeypatch):
    """The second step waits for ever; the button sets the flow run's state, the run ends as by SIGTERM."""
    (tmp_path / "world").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "world")
    (tmp_path / "world" / "endless.py").write_text("import time\ndef waits(messages, text):\n    time.sleep(600)\n")
    workspace, api = two_steps("endless.waits"), prefect["PREFECT_API_URL"]
    before = {flow["id"] for flow in _ask(f"{api}/flow_runs/filter")}
    process = drive(workspace, **prefect)
    try:
        deadline = time.monotonic() + 120
        while not (mine := [flow for flow in _ask(f"{api}/flow_runs/filter") if flow["id"] not in before]):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        _ask(f"{api}/flow_runs/{mine[0]['id']}/set_state", state={"type": "CANCELLING"}, force=True)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 143, output
    assert runs.load(workspace, "shown").outcome == runs.INTERRUPTED
    (flow,) = (flow for flow in _ask(f"{api}/flow_runs/filter") if flow["id"] == mine[0]["id"])
    assert flow["state_type"] == "CANCELLED"


def _temporary_server(driver: int) -> psutil.Process:
    """The server the driver started, once it has been told of the flow and answers."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        for child in psutil.Process(driver).children(recursive=True):
            try:
                words = child.cmdline()
            except psutil.Error:  # a child that has just ended
                continue
            if "uvicorn" in words:
                port = words[words.index("--port") + 1]
                try:
                    if _ask(f"http://127.0.0.1:{port}/api/flow_runs/filter"):
                        return child
                except OSError:
                    pass
        time.sleep(0.2)
    raise AssertionError("no server within 180 s")


def test_a_prefect_that_never_answers_is_not_waited_for(tmp_path, monkeypatch, capsys):
    """A listening socket that nobody serves: the end of the run waits for its patience and says so once."""
    monkeypatch.setattr(prefect_side, "_PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/api")
        for name in prefect_side.environment(tmp_path):
            monkeypatch.setenv(name, prefect_side.environment(tmp_path)[name])
        page = prefect_side.PrefectPage(tmp_path, "shown")
        started = time.monotonic()
        page.ended("done")
        assert time.monotonic() - started < 5
    assert capsys.readouterr().out.splitlines() == [
        "note: Prefect is slow; its page lacks the end of this run, whose files are complete"]


@pytest.mark.slow
def test_a_run_beside_a_server_leaves_states_progress_links_and_counts(two_steps, drive):
    """`align server up`, a run, then the server's own API: a flow run, its two tasks, each step's progress at 100, its
    folder, its counts. A proxy of the environment that leads nowhere is in nobody's way."""
    workspace = two_steps()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    dead = {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT") and k.lower() != "no_proxy"}
    environment |= {"PYTHONPATH": str(ROOT), **dead}
    server = [sys.executable, "-m", "flows.cli", "server"]
    where = [f"workspace={workspace}", "--port", str(port)]
    up = subprocess.run([*server, "up", *where], env=environment, capture_output=True, text=True, timeout=180)
    assert up.returncode == 0, up.stderr
    try:
        api = f"http://127.0.0.1:{port}/api"
        direct = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}  # as `align` gives its children
        process = drive(workspace, ALIGNLOOP_DASHBOARD="http://box:4280", **dead, **direct)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0 and "note: " not in output, output
        found = {a["key"]: a for a in _ask(f"{api}/artifacts/latest/filter")}
        (flow,) = _ask(f"{api}/flow_runs/filter")
        tasks = {task["name"]: task for task in _ask(f"{api}/task_runs/filter")}
        logs = [line["message"] for line in _ask(f"{api}/logs/filter")]
    finally:
        subprocess.run([*server, "down", *where], env=environment, capture_output=True, timeout=60)
    assert f"page      http://127.0.0.1:{port}/runs/flow-run/{flow['id']}" in output
    assert (flow["name"], flow["state_type"]) == ("shown", "COMPLETED")
    assert {name: task["state_type"] for name, task in tasks.items()} == {"data": "COMPLETED", "scores": "COMPLETED"}
    assert {task["flow_run_id"] for task in tasks.values()} == {flow["id"]}
    assert [given["id"] for given in tasks["scores"]["task_inputs"]["groups"]] == [tasks["data"]["id"]]
    assert any(line.startswith("data: ") and "sft 5" in line for line in logs)
    assert found["shown-scores-progress"]["data"] == 100.0
    assert (workspace / "artifacts" / "score").as_uri() in found["shown-scores-artifact"]["data"]
    assert found["shown-scores-page"]["data"] == (
        "[shown: scores](http://box:4280/#/run/shown?step=scores)")
    counts = {row["what"]: row["number"] for row in json.loads(found["shown-data-counts"]["data"])}
    assert counts["sft"] == 5


def _ask(url: str, **content: object) -> list[dict]:
    body, kind = json.dumps(content).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=body, headers=kind)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())
