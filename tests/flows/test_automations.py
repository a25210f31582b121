"""An automation of Prefect's own, as docs/watching.md has it, is triggered by a run's events on a real server."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import notify, watcher
from flows.compose import compose
from flows.notify import Message, Notify
from flows.prefect_side import environment
from pipeline import supervisor

ROOT = Path(__file__).parents[2]
PREFECT = str(Path(sys.executable).with_name("prefect"))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the services that watch for events: what `align server up` starts."""
    place = tmp_path_factory.mktemp("automations")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = {**os.environ, **environment(place), "PREFECT_SERVER_API_PORT": str(port)}
    process = subprocess.Popen(supervisor.command_line(
        [PREFECT, "server", "start", "--no-ui"], log=place / "server.log", grace=5), env=own)
    url, deadline = f"http://127.0.0.1:{port}/api", time.monotonic() + 120
    while not answers(url):
        assert process.poll() is None and time.monotonic() < deadline, (place / "server.log").read_text()
        time.sleep(0.2)
    yield url
    process.terminate()
    process.wait(60)


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(f"{url}/health", timeout=2).status == 200
    except OSError:
        return False


def ask(url: str, content: object) -> dict | list:
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    return json.loads(urllib.request.urlopen(request, timeout=30).read())


@pytest.mark.slow
def test_the_automation_of_the_docs_runs_a_deployment_for_a_failed_run(api: str, tmp_path: Path, monkeypatch):
    """Created from the file with Prefect's own command; the deployment's run has the run's name. A finished run
    triggers nothing."""
    flow = ask(f"{api}/flows/", {"name": "go-on"})["id"]
    deployment = ask(f"{api}/deployments/", {"name": "night", "flow_id": flow})["id"]
    (made,) = re.findall(r"```yaml\n(name: .*?)```", (ROOT / "docs" / "watching.md").read_text(), re.DOTALL)
    file = tmp_path / "automation.yaml"
    file.write_text(made.replace("DEPLOYMENT-ID", deployment))
    monkeypatch.setenv("PREFECT_API_URL", api)
    created = subprocess.run([PREFECT, "automation", "create", "--from-file", str(file)], capture_output=True,
                             text=True, env={**os.environ, **environment(tmp_path)}, timeout=60)
    assert created.returncode == 0, created.stdout + created.stderr
    time.sleep(1.0)  # the triggers are read again every moment
    for event, run in (("finished", "good"), ("failed", "night")):
        watcher.tell(Notify(prefect=True), Message(event, run, f"{run}: {event}", "why: memory ran out", str(tmp_path)))
    deadline = time.monotonic() + 60
    while not (found := ask(f"{api}/flow_runs/filter", {"deployments": {"id": {"any_": [deployment]}}})):
        assert time.monotonic() < deadline, "the automation fires"
        time.sleep(0.5)
    assert [one["parameters"] for one in found] == [{"run": "night", "workspace": str(tmp_path)}]
    kept = []
    while len(kept) < 2:  # they are written some seconds after they were acted upon
        assert time.monotonic() < deadline, kept
        kept = ask(f"{api}/events/filter", {"filter": {"event": {"prefix": ["alignloop."]}}})["events"]
        time.sleep(0.5)
    assert {(one["event"], one["resource"]["prefect.resource.id"]) for one in kept} == {
        ("alignloop.run.finished", "alignloop.run.good"), ("alignloop.run.failed", "alignloop.run.night")}


def test_a_prefect_that_is_not_there_is_said_by_the_plan_and_by_the_log(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    config = compose(["recipe=sft", "notify=prefect", f"workspace={tmp_path}"]).config
    (problem,) = notify.unheard(config)
    assert problem.startswith("notify.prefect: no Prefect server is up; start one:\n    align server up")
    assert notify.unheard(compose(["recipe=sft", f"workspace={tmp_path}"]).config) == []
    watcher.tell(Notify(prefect=True), Message("failed", "r", "t", "x", str(tmp_path)), sleep=lambda _: None)
    said = "prefect: failed: not sent (no Prefect server: align server up, or PREFECT_API_URL)"
    assert capsys.readouterr().out.splitlines() == [said] * 3
