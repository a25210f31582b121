"""Mirror a run to the trackers people use, W&B and TensorBoard, from a process of its own.

    python -m pipeline.tracking RUN_DIR            send what has not been sent yet, then end
    python -m pipeline.tracking RUN_DIR --follow   go on until standard input closes (what a run starts)

metrics.jsonl and events.jsonl are the record; this is a copy. Stages never talk to a tracker, so it can neither fail
nor delay them: it starts beside the run, and a run that ends waits for it no longer than `finish_timeout`. How far it
came is kept in `tracking.json`, so the same run started again sends the rest.
"""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline import files, runs, store, supervisor
from pipeline.tracking.tensorboard import TensorBoard
from pipeline.tracking.wandb import Wandb

METRICS, EVENTS, STATE, LOG = "metrics.jsonl", "events.jsonl", "tracking.json", "logs/tracking.log"
_PATIENCE = 30.0  # seconds a finished run waits for a mirror without a setting of its own


@dataclass(frozen=True)
class Settings:
    """Metrics always go to metrics.jsonl; the others mirror them."""

    wandb: Wandb | None = None  # null: no mirror
    tensorboard: TensorBoard | None = None  # null: no mirror

    def check(self) -> list[tuple[str, str]]:
        missing = self.tensorboard is not None and importlib.util.find_spec("tensorboard") is None
        return [("tensorboard", "the package is not installed; pip install 'alignloop[tensorboard]', or take "
                                "tracking=jsonl")] if missing else []


class Sink(Protocol):
    """A tracker's side of the mirror."""

    def number(self, line: dict[str, Any]) -> None: ...

    def finished(self, step: str, artifact: store.Artifact) -> None: ...

    def failed(self, step: str, code: int) -> None: ...

    def quiet(self, since: float) -> None: ...

    def close(self) -> None: ...

    def said(self) -> str: ...


@contextlib.contextmanager
def mirrored(settings: Settings, run_dir: Path, say: Callable[[str], None] = print) -> Iterator[None]:
    """Mirror the run while the body runs. Never raises of its own; says one line at the end."""
    if settings.wandb is None and settings.tensorboard is None:
        yield
        return
    log = run_dir / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    process = _start(run_dir, log)
    try:
        yield
    finally:
        say(_stop(process, settings.wandb.finish_timeout if settings.wandb else _PATIENCE, log))


def _start(run_dir: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipeline.tracking", str(run_dir.absolute()), "--follow"]
    # Apart from the terminal: Ctrl-C is for the run, which then closes the pipe and lets this finish.
    with log.open("ab") as file:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=file, start_new_session=True,
                                env={**os.environ, **supervisor.imports()})


def _stop(process: subprocess.Popen[bytes], timeout: float, log: Path) -> str:
    if process.stdin is not None:
        process.stdin.close()
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return f"tracking: not finished after {timeout:.0f} s, left; the same command sends the rest ({log})"
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1] if code == 0 and lines else f"tracking: the mirror failed, metrics.jsonl has everything ({log})"


def read_lines(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The complete lines after byte `offset`, and the offset after them. A line still being written waits."""
    if not path.exists():
        return [], 0
    offset = offset if path.stat().st_size >= offset else 0  # 0: the file was made anew
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    return files.parsed_lines(whole, step=str), offset + len(whole)


def mirror(run_dir: Path, sinks: list[Sink], going_on: Callable[[], bool]) -> None:
    """Send every line not sent yet; go on as long as `going_on()` (which waits a moment) says so, then once more."""
    state = run_dir / STATE
    known = next(iter(files.parsed_lines(state.read_bytes())), {}) if state.exists() else {}
    reached = {METRICS: 0, EVENTS: 0, "artifacts": [], **known}
    more = True
    while more:
        more = going_on()
        numbers, reached[METRICS] = read_lines(run_dir / METRICS, reached[METRICS])
        events, reached[EVENTS] = read_lines(run_dir / EVENTS, reached[EVENTS])
        ended = [event for event in events if event.get("event") in ("finished", "cached", "failed")]
        timed = [line for line in numbers + ended if isinstance(line.get("time"), int | float)]
        for line in sorted(timed, key=lambda line: line["time"]):  # a step's end comes behind its numbers
            if line.get("event") == "failed":
                for sink in sinks:
                    sink.failed(line["step"], line.get("code", 1))
            elif "event" in line:
                _finished(run_dir, line, sinks, reached["artifacts"])
            else:
                for sink in sinks:
                    sink.number(line)
        if more:
            since = runs.sign_of_life(run_dir.parent.parent, run_dir.name)
            for sink in sinks:
                sink.quiet(since)
        if numbers or events:
            files.write_atomic(state, json.dumps(reached))
    for sink in sinks:
        sink.close()


def _finished(run_dir: Path, event: dict[str, Any], sinks: list[Sink], sent: list[str]) -> None:
    """Tell the sinks of a step's artifact, once. `sent` is what they were told of."""
    step, mark = event["step"], f"{event['step']} {event['key']}"
    steps = json.loads((run_dir / "run.json").read_text())["steps"]
    kind = next((s["stage"] for s in steps if s["name"] == step), None)
    if mark in sent or kind is None:
        return
    artifact = store.find(run_dir.parent.parent, kind, event["key"])
    if artifact is not None:
        for sink in sinks:
            sink.finished(step, artifact)
        sent.append(mark)
