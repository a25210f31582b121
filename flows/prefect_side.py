"""Prefect beside a run: its page shows one flow run with a task run per step, and `align server` starts that page.

Prefect is shown what happens and decides nothing. A thread of its own tells its API; a Prefect that is slow, absent or
dead costs one line, never the run.
"""

import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from flows import results, screen
from flows.dashboard import PORT
from flows.observer import Observer
from pipeline import files, runs, store, web
from pipeline.errors import UserError, command
from pipeline.plan import Step

_EVERY = 2.0  # seconds between two updates of a step's progress
_PATIENCE, _HURRY = 30.0, 3.0  # seconds a run that ended, or was interrupted, waits for what Prefect has not taken yet
_START_SECONDS = 60
_STATES = {runs.DONE: "COMPLETED", runs.FAILED: "FAILED", runs.INTERRUPTED: "CANCELLED"}
FLOW_RUN = "ALIGNLOOP_FLOW_RUN"  # the id of a flow run of Prefect's own that this run is the work of (flows/flow.py)
_DASHBOARD = "ALIGNLOOP_DASHBOARD"  # where the dashboard is, if not at its usual address on this machine


def environment(workspace: Path) -> dict[str, str]:
    """Prefect's settings, to be set before it is imported: all of its state in the workspace, its telemetry off, its
    console quiet, two tries of ten seconds for a request. A user's own values win."""
    return {"PREFECT_HOME": str(workspace / ".prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1", "PYTHONSAFEPATH": "1", "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
            "PREFECT_API_REQUEST_TIMEOUT": "10", "PREFECT_CLIENT_MAX_RETRIES": "1",
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL", "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL"}


class PrefectPage(Observer):
    """Tells Prefect of a run. Every event is put in a queue; a thread sends them in order until Prefect fails once.

    Without a server of the user's or the workspace's, Prefect's temporary one keeps the history in the workspace.
    """

    def __init__(self, workspace: Path, run: str) -> None:
        for variable, value in environment(workspace).items():
            os.environ.setdefault(variable, value)
        if "PREFECT_API_URL" not in os.environ and (url := running_url(workspace)):
            os.environ["PREFECT_API_URL"] = url
        self._events = queue.SimpleQueue[Callable[[_FlowRun], None] | None]()
        self._shown: dict[str, float] = {}  # step -> when its progress was last sent
        self._given_up = False
        self._thread = threading.Thread(target=self._tell, args=(workspace, run), daemon=True)
        self._thread.start()

    def started(self, step: Step) -> None:
        self._events.put(lambda page: page.start(step))

    def progress(self, step: str, state: dict[str, Any] | None) -> None:
        if state and state.get("total") and time.monotonic() - self._shown.get(step, 0.0) > _EVERY:
            self._shown[step] = time.monotonic()
            share = 100 * min(1.0, state["done"] / state["total"])
            self._events.put(lambda page: page.progress(step, share))

    def again(self, step: str, why: str) -> None:
        self._events.put(lambda page: page.again(step, why))

    def finished(self, step: str, artifact: store.Artifact, cached: bool, seconds: float) -> None:
        self._events.put(lambda page: page.finish(step, artifact, "cached" if cached else f"{seconds:.1f} s"))

    def gate(self, lines: list[str]) -> None:
        self._events.put(lambda page: page.log("\n".join(lines)))

    def ended(self, outcome: str) -> None:
        self._events.put(lambda page: page.end(outcome))
        self._events.put(None)
        interrupted = outcome == runs.INTERRUPTED
        self._thread.join(_HURRY if interrupted else _PATIENCE)
        self._given_up = self._thread.is_alive()
        if self._given_up and not interrupted:
            screen.say("note: Prefect is slow; its page lacks the end of this run, whose files are complete")

    def _tell(self, workspace: Path, run: str) -> None:
        try:
            from prefect.client.orchestration import get_client  # takes seconds; may start the temporary server

            with get_client(sync_client=True) as client:
                page = _FlowRun(client, workspace, run)
                while True:
                    try:
                        event = self._events.get(timeout=_EVERY)
                    except queue.Empty:
                        event = _FlowRun.obey
                    if event is None:
                        return
                    event(page)
        except Exception as error:  # whatever Prefect raises: the files are the record
            if not self._given_up:
                why = str(error).partition("\n")[0]
                screen.say(f"note: Prefect does not answer ({type(error).__name__}: {why}); the run goes on without it")


class _FlowRun:
    """One flow run and its task runs, written through Prefect's REST API. Every method may raise what httpx raises."""

    def __init__(self, client: Any, workspace: Path, run: str) -> None:
        self._client, self._workspace, self._run = client, workspace, run
        self._looked_at = bool(os.environ.get("PREFECT_API_URL"))  # nobody sees the temporary server's artifacts
        self._given = os.environ.get(FLOW_RUN, "")  # Prefect has started it, and says how it ended
        if self._given:
            self._id = self._given
        else:
            flow = self._post("/flows/", name="alignloop")
            self._id = self._post("/flow_runs/", flow_id=flow, name=run, state={"type": "PENDING"})
            self._set("flow_runs", self._id, "RUNNING")
        self._tasks: dict[str, str] = {}
        self._bars: dict[str, str] = {}
        self._open: set[str] = set()  # steps that run
        self._cancelled = False
        if self._looked_at:
            from prefect.utilities.urls import url_for

            screen.say(f"page      {url_for('flow-run', obj_id=self._id)}")

    def start(self, step: Step) -> None:
        before = {name: [{"input_type": "task_run", "id": self._tasks[ref.step]} for ref in refs
                         if ref.step in self._tasks] for name, refs in step.inputs.items()}
        task = self._post("/task_runs/", name=step.name, task_key=step.stage, dynamic_key=step.name, task_inputs=before,
                          flow_run_id=self._id, state={"type": "PENDING"})
        self._tasks[step.name] = task
        self._open.add(step.name)
        self._set("task_runs", task, "RUNNING")
        if self._looked_at:
            self._bars[step.name] = self._artifact(step.name, "progress", "progress", 0.0, step.name)

    def progress(self, step: str, share: float) -> None:
        if step in self._bars:
            self._client.request("PATCH", f"/artifacts/{self._bars[step]}", json={"data": share})
            self.obey()

    def again(self, step: str, why: str) -> None:
        self.log(f"{why}; it is tried again", step)
        self._set("task_runs", self._tasks[step], "SCHEDULED", why, name="AwaitingRetry")
        self._set("task_runs", self._tasks[step], "RUNNING", name="Retrying")

    def finish(self, step: str, artifact: store.Artifact, how: str) -> None:
        """The task is done: its counts as a log line and a table, links to its folder and to the dashboard's page."""
        counts = artifact.manifest["counts"]
        self.progress(step, 100.0)
        self.log(f"{step}: {results.of(artifact)}", step)
        if self._looked_at:
            where = f"[{artifact.kind}/{artifact.key}]({artifact.path.as_uri()})"
            folder = runs.folder(self._workspace, self._run)
            self._artifact(step, "artifact", "markdown", where, f"{step}: its artifact; the run is in {folder}")
            if page := dashboard(self._workspace):
                link = f"{page}#/run/{quote(self._run)}?{urlencode({'step': step})}"
                self._artifact(step, "page", "markdown", f"[{self._run}: {step}]({link})", f"{step} on the dashboard")
            if counts:
                table = [{"what": what, "number": number} for what, number in counts.items()]
                self._artifact(step, "counts", "table", json.dumps(table), step)
        self._set("task_runs", self._tasks[step], "COMPLETED", how)
        self._open.discard(step)

    def obey(self) -> None:
        """Where somebody cancels the run on Prefect's page, it stops as one that is interrupted does."""
        state = self._client.request("GET", f"/flow_runs/{self._id}").json()["state"]["type"]
        if state in ("CANCELLING", "CANCELLED") and not self._cancelled:
            self._cancelled = True
            os.kill(os.getpid(), signal.SIGTERM)

    def log(self, text: str, step: str = "") -> None:
        own = {"task_run_id": self._tasks[step]} if step else {}
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._client.request("POST", "/logs/", json=[
            {"name": "alignloop", "level": 20, "message": text, "timestamp": when, "flow_run_id": self._id, **own}])

    def end(self, outcome: str) -> None:
        state = _STATES.get(outcome, "COMPLETED")  # one that a gate stopped came to its end, too
        for step in self._open:
            self._set("task_runs", self._tasks[step], state)
        if not self._given:
            self._set("flow_runs", self._id, state, outcome)

    def _artifact(self, step: str, what: str, kind: str, data: Any, description: str) -> str:
        return self._post("/artifacts/", key=f"{key(self._run, step)}-{what}", type=kind, data=data,
                          description=description, flow_run_id=self._id, task_run_id=self._tasks[step])

    def _set(self, kind: str, which: str, state: str, message: str = "", **named: str) -> None:
        self._post(f"/{kind}/{which}/set_state", force=True, state={"type": state, "message": message, **named})

    def _post(self, path: str, **content: Any) -> str:
        """The id of what was made ("" where nothing was)."""
        return str(self._client.request("POST", path, json=content).json().get("id", ""))


def key(run: str, step: str) -> str:
    """A key Prefect accepts (lower-case letters, digits, dashes), one per run and step."""
    return re.sub(r"[^a-z0-9]+", "-", f"{run}-{step}".lower()).strip("-")


def dashboard(workspace: Path) -> str:
    """Where a dashboard shows this workspace, "" where none is known.

    What ALIGNLOOP_DASHBOARD says (as printed by `align dashboard`, token included), else the usual address on this
    machine if a dashboard of this very workspace answers there.
    """
    if given := os.environ.get(_DASHBOARD):
        return given if "?" in given else given.rstrip("/") + "/"
    usual = f"http://localhost:{PORT}/"
    try:
        return usual if json.loads(web.fetch(f"{usual}api/runs?first=1", 1)[1])["workspace"] == str(workspace) else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


# ---------------------------------------------------------------------------------------------------------------------


def server(action: str, workspace: str, port: int) -> int:
    """`align server up|down|status`: runs started while the server is up are shown on its page, live."""
    place = Path(workspace).expanduser().resolve()
    record = place / ".prefect" / "server.json"
    if action == "up":
        return _up(place, record, port)
    url = _url(record)
    if action == "status":
        screen.say(f"up at {url}" if url and _answers(url) else
                   f"not running; start it with:{command(place, 'server', 'up')}")
    elif url is None:
        screen.say("not running")
    else:
        _prefect_server(place, port, "stop")
        record.unlink(missing_ok=True)
        screen.say("stopped")
    return 0


def running_url(workspace: Path) -> str | None:
    """The API address of this workspace's server, if it is up."""
    url = _url(workspace / ".prefect" / "server.json")
    return f"{url}/api" if url and _answers(url) else None


def _up(place: Path, record: Path, port: int) -> int:
    url = f"http://127.0.0.1:{port}"
    if _url(record) == url and _answers(url):
        screen.say(f"already up at {url}")
        return 0
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise UserError(f"port: {port} cannot be used ({error.strerror}); try another --port") from None
    (place / ".prefect").mkdir(parents=True, exist_ok=True)
    started = _prefect_server(place, port, "start", "--background")
    deadline = time.monotonic() + _START_SECONDS
    while started.returncode == 0 and time.monotonic() < deadline:
        if _answers(url):
            files.write_atomic(record, json.dumps({"url": url}))
            screen.say(f"up at {url}; runs in {place} report to it; stop it with:"
                       f"{command(place, 'server', 'down')}")
            return 0
        time.sleep(0.3)
    said = (started.stderr or started.stdout).strip()[-400:]
    raise UserError(f"port: Prefect's server did not start on {port}: {said}; try another --port")


def _prefect_server(place: Path, port: int, *words: str) -> subprocess.CompletedProcess[str]:
    """The port goes through the environment: given as an option the page asks another one and stays blank."""
    beside = Path(sys.executable).with_name("prefect")
    program = str(beside) if beside.exists() else shutil.which("prefect") or "prefect"
    own = {"PREFECT_SERVER_API_PORT": str(port), "PREFECT_SERVER_API_HOST": "127.0.0.1",
           "PREFECT_SERVER_UI_API_URL": "/api"}
    kept = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    return subprocess.run([program, "server", *words], env={**environment(place), **kept, **own}, capture_output=True,
                          text=True)


def _url(record: Path) -> str | None:
    try:
        return next((str(line["url"]) for line in files.parsed_lines(record.read_bytes(), url=str)), None)
    except OSError:
        return None


def _answers(url: str) -> bool:
    try:
        return web.fetch(f"{url}/api/health", 2)[0] == 200
    except OSError:
        return False
