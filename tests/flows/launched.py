"""A run of two small steps through a launcher, and what it leaves: for the tests of every launcher."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline import files, runs, store

ROOT = Path(__file__).parent.parent.parent

# Scores a row by its words; while the file that WAIT names is there, it works at the step and does not come to an end.
SLOW = """
import os, time
def words(prompt, completion, **_):
    while os.path.exists({wait!r}):
        open({wait!r} + ".up", "w").close()
        time.sleep(0.05)
    return float(len(completion.split()))
"""


def through(workspace: Path, module: str, **settings: Any) -> None:
    """Have the run "shown" start its steps by this launcher."""
    run = runs.load(workspace, "shown")
    assert run is not None
    spec = {"module": f"pipeline.launchers.{module}", **settings}
    runs.save(workspace, replace(run, config={**run.config, "launcher": spec}))


def drive(workspace: Path, environment: dict[str, str], path: str = str(ROOT)) -> subprocess.Popen[str]:
    """The driver of the run "shown", its output as text. Its steps start cold, as a user's do: kills mean something;
    warm with the environment and the path of the tests' warm server.
    """
    given = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    paths = os.pathsep.join([str(workspace.parent / "world"), path])
    return subprocess.Popen([sys.executable, "-m", "flows.driver", str(workspace), "shown", ""], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            env={**given, **environment, "PYTHONPATH": paths})


def slow(two_steps: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, place: Path) -> tuple[Path, Path]:
    """A workspace whose second step goes on as long as the file, the second path, is there."""
    (place / "world").mkdir()
    wait = place / "wait"
    wait.touch()
    (place / "world" / "slow.py").write_text(SLOW.format(wait=str(wait)))
    monkeypatch.syspath_prepend(place / "world")
    sys.modules.pop("slow", None)
    return two_steps("slow.words"), wait


def orphan(workspace: Path, wait: Path, driver: subprocess.Popen[str], seconds: float) -> None:
    """Kill the driver while the second step works, wait so long for the step to end by itself, let the next one end."""
    until(lambda: working(wait))
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    until(lambda: not processes(workspace), seconds)
    wait.unlink()


def until(what: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)
    return found


def working(wait: Path) -> bool:
    """Whether the second step has come to its work."""
    return wait.with_name("wait.up").exists()


def processes(workspace: Path, word: str = "") -> list[psutil.Process]:
    """Everything that runs for a step of this workspace."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if f"{workspace}/artifacts" in line and word in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def payload(workspace: Path) -> dict[str, str]:
    """Every file of every artifact, but for manifests, by its path: its hash."""
    return {str(path.relative_to(workspace)): files.file_hash(path) for path in (workspace / "artifacts").rglob("*")
            if path.is_file() and path.name != store.MANIFEST}


def started(workspace: Path) -> list[str]:
    """The steps that were begun, in order, as often as they were."""
    lines = (runs.folder(workspace, "shown") / "events.jsonl").read_text().splitlines()
    return [event["step"] for event in map(json.loads, lines) if event["event"] == "started"]


def small_run(command: Callable[..., list[str]], world: Path, workspace: Path, environment: dict[str, str],
              *words: str) -> dict[str, str]:
    """The payload of a run of SFT on the built-in world's first rows, each step's process cold."""
    call = command("run", "recipe=sft", f"data.root={world}", "engine=transformers", "trainer.sft.epochs=1",
                   "precision=float32", f"workspace={workspace}", "run=shown", *words)
    done = subprocess.run(call, env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, capture_output=True,
                          text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return payload(workspace)
