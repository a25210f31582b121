"""`align server up|down|status`: Prefect's own server and page over the flows of this workspace."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from flows import screen
from flows.environment import prefect_environment
from pipeline import files, web
from pipeline.errors import UserError

_START_SECONDS = 60


def server(action: str, port: int, workspace: str) -> int:
    """Start, stop or look at the server. Runs started while it is up are shown on its page, live."""
    place = Path(workspace).expanduser().resolve()
    record = place / ".prefect" / "server.json"
    if action == "up":
        return _up(place, record, port)
    url = _url(record)
    if action == "status":
        screen.say(f"up at {url}" if url and _answers(url) else "not running; start it with: align server up")
        return 0
    if url is None:
        screen.say("not running")
        return 0
    subprocess.run([_prefect(), "server", "stop"], env=_environment(place, port), check=False, capture_output=True)
    record.unlink(missing_ok=True)
    screen.say("stopped")
    return 0


def _up(place: Path, record: Path, port: int) -> int:
    url = f"http://127.0.0.1:{port}"
    if _url(record) == url and _answers(url):
        screen.say(f"already up at {url}")
        return 0
    (place / ".prefect").mkdir(parents=True, exist_ok=True)
    started = subprocess.run([_prefect(), "server", "start", "--background"], env=_environment(place, port),
                             capture_output=True, text=True)
    deadline = time.monotonic() + _START_SECONDS
    while started.returncode == 0 and time.monotonic() < deadline:
        if _answers(url):
            files.write_atomic(record, json.dumps({"url": url}))
            screen.say(f"up at {url}; runs in {place} report to it; stop it with: align server down")
            return 0
        time.sleep(0.3)
    said = (started.stderr or started.stdout).strip()[-400:]
    raise UserError(f"port: Prefect's server did not start on {port}: {said}; try another --port")


def running_url(workspace: Path) -> str | None:
    """The API address of this workspace's server, if it is up."""
    url = _url(workspace / ".prefect" / "server.json")
    return f"{url}/api" if url and _answers(url) else None


def _environment(place: Path, port: int) -> dict[str, str]:
    """The port goes through the environment: given as an option the page asks another one and stays blank."""
    own = {"PREFECT_SERVER_API_PORT": str(port), "PREFECT_SERVER_API_HOST": "127.0.0.1",
           "PREFECT_SERVER_UI_API_URL": "/api"}
    kept = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    return {**prefect_environment(place), **kept, **own}


def _prefect() -> str:
    beside = Path(sys.executable).with_name("prefect")
    return str(beside) if beside.exists() else shutil.which("prefect") or "prefect"


def _url(record: Path) -> str | None:
    try:
        return str(json.loads(record.read_text())["url"])
    except (OSError, ValueError, KeyError):
        return None


def _answers(url: str) -> bool:
    try:
        return web.fetch(f"{url}/api/health", 2)[0] == 200
    except OSError:
        return False
