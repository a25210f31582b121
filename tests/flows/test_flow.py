"""A run as a flow of Prefect's: a real server and worker, deployments by `align deploy`, states by the server's API."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zoneinfo
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.deploy import deploy
from flows.prefect_side import environment as prefect_environment
from pipeline import files, runs, supervisor
from pipeline.errors import UserError
from pipeline.files import parsed_lines

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PREFECT = str(Path(sys.executable).with_name("prefect"))
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with twelve rows to fine-tune on, and one for workspaces."""
    folder = tmp_path_factory.mktemp("flow")
    (folder / "rows").mkdir()
    rows = [{"prompt": f"question {i}", "completion": f"answer number {i}"} for i in range(12)]
    (folder / "rows" / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def server(place: Path, warm) -> Iterator[dict[str, str]]:
    """The environment of everything that asks the module's Prefect server, which has a worker of the pool alignloop."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/api"
    own = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT")}
    asks = {**own, **warm, **prefect_environment(place), "PREFECT_API_URL": address}
    serves = {**asks, "PREFECT_SERVER_API_PORT": str(port)}
    del serves["PREFECT_API_URL"]
    log = place / "server.log"
    serve = [PREFECT, "server", "start", "--no-ui"]
    up = subprocess.Popen(supervisor.command_line(serve, log=log, grace=5), env=serves)
    deadline = time.monotonic() + 120
    while not _up(address):
        assert up.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    _ask(f"{address}/work_pools/", name="alignloop", type="process")
    command = [PREFECT, "worker", "start", "--pool", "alignloop"]
    quick = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_WORKER_PREFETCH_SECONDS": "1"}
    at_work = subprocess.Popen(supervisor.command_line(command, log=place / "worker.log", grace=5),
                               env={**asks, **quick})
    yield asks
    for process in (at_work, up):
        process.terminate()
        process.wait(60)


def _up(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def _ask(url: str, method: str = "POST", **content: object):
    body, kind = json.dumps(content).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=body if method == "POST" else None, headers=kind, method=method)
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:  # its database is busy: Prefect's own clients ask again, too
            if error.code != 503 or time.monotonic() > deadline:
                raise
            time.sleep(0.5)


@pytest.fixture(scope="module")
def deployed(server, place, tiny_model) -> Callable[..., tuple[str, Path]]:
    """deployed(run, *words) -> the id of a deployment that fine-tunes the tiny model, by `align deploy`, and its
    workspace."""
    def make(run: str, *words: str, options: tuple[str, ...] = ()) -> tuple[str, Path]:
        own = ["recipe=sft", f"run={run}", f"workspace={place / run}", "data=files", f"data.root={place / 'rows'}",
               "model=path", f"model.path={tiny_model}", "trainer=scratch", "trainer.sft.batch_size=4",
               "trainer.sft.epochs=1", "model.max_prompt_tokens=64", "model.max_completion_tokens=64",
               "hardware.training.threads=1", "hardware.warm_workers=false", *words]
        done = subprocess.run([sys.executable, "-m", "flows.cli", "deploy", *own, *options], env=server, text=True,
                              capture_output=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"prefect deployment run alignloop/{run}" in done.stdout
        found = _ask(f"{server['PREFECT_API_URL']}/deployments/name/alignloop/{run}", "GET")
        return found["id"], place / run

    return make


@pytest.fixture(scope="module")
def ended(server) -> Callable[..., dict]:
    """ended(deployment, **parameters) -> the flow run that the worker made of it, once it has ended."""
    api = server["PREFECT_API_URL"]

    def go(deployment: str, **parameters: object) -> dict:
        made = _ask(f"{api}/deployments/{deployment}/create_flow_run", parameters=parameters)
        return wait(api, made["id"], ENDED)

    return go


def wait(api: str, flow_run: str, states: set[str], seconds: float = 150) -> dict:
    deadline = time.monotonic() + seconds
    while (found := _ask(f"{api}/flow_runs/{flow_run}", "GET"))["state_type"] not in states:
        assert time.monotonic() < deadline, found["state"]
        time.sleep(0.3)
    return found


def test_a_worker_runs_it_its_steps_are_task_runs_and_twice_does_nothing_twice(server, deployed, ended):
    deployment, workspace = deployed("first", options=("--cron", "0 6 * * 1", "--timezone", "Europe/Berlin"))
    api = server["PREFECT_API_URL"]
    known = _ask(f"{api}/deployments/{deployment}", "GET")
    assert known["entrypoint"] == "flows.flow.align" and known["work_pool_name"] == "alignloop"
    assert known["parameters"]["recipe"] == "sft" and known["parameters"]["workspace"] == str(workspace)
    assert set(known["parameter_openapi_schema"]["properties"]) == {"recipe", "overrides", "run", "workspace"}
    schedule = known["schedules"][0]["schedule"]
    assert (schedule["cron"], schedule["timezone"]) == ("0 6 * * 1", "Europe/Berlin")
    flow = ended(deployment)
    assert (flow["state_type"], flow["name"]) == ("COMPLETED", "first"), flow["state"]
    of_it = {"flow_runs": {"id": {"any_": [flow["id"]]}}}
    tasks = {task["name"]: task for task in _ask(f"{api}/task_runs/filter", **of_it)}
    assert {name: task["state_type"] for name, task in tasks.items()} == dict.fromkeys(
        ("data", "init", "tokens", "sft"), "COMPLETED")
    assert [one["id"] for one in tasks["sft"]["task_inputs"]["groups"]] == [tasks["tokens"]["id"]]
    record = runs.load(workspace, "first")
    assert record.outcome == runs.DONE
    again = ended(deployment)
    assert again["state_type"] == "COMPLETED"
    events = [(event["event"], event["step"]) for event in parsed_lines(
        (runs.folder(workspace, "first") / "events.jsonl").read_bytes())]
    assert [step for event, step in events if event == "started"] == [step["name"] for step in record.steps]
    assert len([event for event in events if event[0] == "cached"]) == 4
    asked, deadline = {"flow_run_id": {"any_": [again["id"]]}}, time.monotonic() + 60
    while not any("every step cached" in line["message"] for line in _ask(f"{api}/logs/filter", logs=asked)):
        assert time.monotonic() < deadline  # its process sends them in batches, the last as it ends
        time.sleep(0.5)


@pytest.mark.skipif(importlib.metadata.version("sqlalchemy") >= "2.1", reason="Prefect's scheduler needs 2.0")
def test_a_schedule_makes_flow_runs(server, deployed):
    """The server's scheduler looks every few seconds for deployments that are new."""
    deployment, _ = deployed("weekly", options=("--cron", "0 6 * * 1", "--timezone", "Europe/Berlin"))
    api, deadline = server["PREFECT_API_URL"], time.monotonic() + 60
    wanted = {"deployments": {"id": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"}
    while not (planned := _ask(f"{api}/flow_runs/filter", **wanted)):
        assert time.monotonic() < deadline, Path(server["PREFECT_HOME"]).with_name("server.log").read_text()[-2000:]
        time.sleep(0.5)
    assert {(run["state_type"], run["auto_scheduled"]) for run in planned} == {("SCHEDULED", True)}
    first = datetime.datetime.fromisoformat(planned[0]["expected_start_time"].replace("Z", "+00:00"))
    there = first.astimezone(zoneinfo.ZoneInfo("Europe/Berlin"))
    assert (there.weekday(), there.hour, there.minute) == (0, 6, 0)


def test_parameters_are_checked_in_our_words(server, deployed, ended):
    deployment, _ = deployed("checked")
    flow = ended(deployment, overrides=["trainer.sft.lrr=1"], recipe="sfft")
    assert flow["state_type"] == "FAILED"
    assert flow["state"]["message"].splitlines() == [
        "error: recipe: no recipe named 'sfft' (did you mean sft?)",
        "error: trainer.sft.lrr: unknown key, trainer.sft has no 'lrr' (did you mean lr?)"]
    with pytest.raises(urllib.error.HTTPError, match="409"):  # and in Prefect's, where a type is wrong
        ended(deployment, overrides="trainer.sft.lr=1")


@pytest.mark.long
def test_a_cancel_stops_the_run(server, deployed):
    """Its training would take hours."""
    deployment, workspace = deployed("long", "trainer.sft.epochs=100000", "hardware.grace_seconds=5")
    api = server["PREFECT_API_URL"]
    made = _ask(f"{api}/deployments/{deployment}/create_flow_run")
    deadline = time.monotonic() + 120
    while (state := runs.progress(workspace, "long", "sft")) is None or state["done"] < 3:
        assert time.monotonic() < deadline, (workspace.parent / "worker.log").read_text()
        time.sleep(0.2)
    assert files.is_locked(runs.folder(workspace, "long") / ".lock")
    _ask(f"{api}/flow_runs/{made['id']}/set_state", state={"type": "CANCELLING"}, force=True)
    assert wait(api, made["id"], ENDED)["state_type"] == "CANCELLED"
    while files.is_locked(runs.folder(workspace, "long") / ".lock"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert runs.load(workspace, "long").outcome == runs.INTERRUPTED


def test_a_step_that_is_tried_again_is_one_task_run_with_two_tries(server, two_steps, drive, tmp_path, monkeypatch):
    """The rule fails the first time that it is asked."""
    (tmp_path / "world").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "world")
    seen = tmp_path / "seen"
    (tmp_path / "world" / "flaky.py").write_text(
        f"import pathlib\nseen = pathlib.Path({str(seen)!r})\ndef once(messages, text):\n    if not seen.exists():\n"
        "        seen.touch()\n        raise OSError('the first time')\n    return 1.0\n")
    workspace = two_steps("flaky.once")
    run = runs.load(workspace, "shown")
    run.config["hardware"]["stages"] = {"score": {"retries": 1, "timeout_minutes": None}}
    runs.save(workspace, run)
    process = drive(workspace, PREFECT_API_URL=server["PREFECT_API_URL"])
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "note: scores failed: OSError: the first time; it is tried again" in " ".join(output.split())
    events = [event["event"] for event in parsed_lines((runs.folder(workspace, "shown") / "events.jsonl").read_bytes())
              if event["step"] == "scores"]
    assert events == ["started", "failed", "started", "finished"]
    (task,) = _ask(f"{server['PREFECT_API_URL']}/task_runs/filter", task_runs={"name": {"any_": ["scores"]}})
    assert (task["state_type"], task["run_count"]) == ("COMPLETED", 2)


def test_what_cannot_run_is_not_deployed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(UserError, match="no recipe named 'sfft'"):
        deploy(["recipe=sfft"], None, "alignloop", None, None)
    with pytest.raises(UserError, match=r"data.new: adds prompts to a run, and .* has none named 'weekly'"):
        deploy(["run=weekly", f"workspace={tmp_path}", "data.new=/x.jsonl"], None, "alignloop", "0 6 * * 1", None)
    words = ["recipe=sft", f"workspace={tmp_path}"]
    with pytest.raises(UserError, match=r"--cron: 'weekly' .*expected minute, hour, day"):
        deploy(words, None, "alignloop", "weekly", None)
    # Prefect reads its environment once in a process, which other tests have used for their servers.
    with (temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
          pytest.raises(UserError, match=r"Prefect: http://127.0.0.1:9/api does not take it \(ConnectError")):
        deploy(words, None, "alignloop", None, None)
    monkeypatch.delenv("PREFECT_API_URL")
    with pytest.raises(UserError, match=r"(?s)Prefect: no server runs for .*align server up workspace="):
        deploy(words, None, "alignloop", None, None)
