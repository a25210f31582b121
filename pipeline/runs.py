"""A run's folder: what it is, where its steps are in the store, what happened when.

    <workspace>/runs/<name>/run.json       config (resolved), changes of single steps, steps with their keys, outcome
                            events.jsonl   started / finished / failed / cached, with times
                            metrics.jsonl  every metric any stage reported
                            progress.json  how far the running stage is
                            logs/<step>.log

These files decide what is done; no orchestrator is asked.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.errors import UserError

NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
TABLES = ("groups", "pref", "sft", "unlabeled", "eval")  # the parts of artifacts that are tables of groups
_PATIENCE = 1.0  # seconds; `align status` and the page look at the lock for a moment, too
RUNNING, DONE, FAILED, INTERRUPTED, STALE = "running", "done", "failed", "interrupted", "stale"
STOPPED_BY = "stopped by "  # a gate: the outcome of a run that ended there
# Modules by where they were: a run.json of an earlier version names them so.
MOVED = {
    "pipeline.engines.vllm_ray": "pipeline.engines.vllm.ray",
    "pipeline.rewards.minifarm.gold": "pipeline.worlds.minifarm.gold",
    **{f"pipeline.selection.{name}": f"pipeline.negatives.{name}" for name in ("easiest", "hardest", "mc", "uniform")},
}


@dataclass(frozen=True)
class Run:
    """The content of run.json."""

    name: str
    config: dict[str, Any]
    overrides: list[str]  # what the user typed
    step_overrides: dict[str, list[str]]  # `align stage`: changes of single steps
    steps: list[dict[str, Any]]  # {name, stage, iteration, key, state, seconds, ...} in running order
    outcome: str
    created: float
    step_configs: dict[str, dict[str, Any]] = field(default_factory=dict)  # the configuration of each changed step


def folder(workspace: Path, name: str) -> Path:
    return workspace / "runs" / name


def names(workspace: Path) -> list[str]:
    """Every run, newest first."""
    records = (workspace / "runs").glob("*/run.json")
    return [p.parent.name for p in sorted(records, key=lambda p: p.stat().st_mtime, reverse=True)]


def load(workspace: Path, name: str) -> Run | None:
    path = folder(workspace, name) / "run.json"
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text())
        return Run(**{**data, "config": _renamed(data["config"])})
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not a run record ({error}); move it away or give another run=NAME") from None


def _renamed(node: Any) -> Any:
    """A configuration with every module called by its name of today."""
    if isinstance(node, dict):
        return {key: _renamed(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_renamed(value) for value in node]
    return MOVED.get(node, node) if isinstance(node, str) else node


def save(workspace: Path, run: Run) -> None:
    files.write_atomic(folder(workspace, run.name) / "run.json", json.dumps(vars(run), indent=1))


def update_step(workspace: Path, run: Run, name: str, **facts: Any) -> Run:
    """The run with new facts of one step, saved."""
    changed = replace(run, steps=[{**s, **facts} if s["name"] == name else s for s in run.steps])
    save(workspace, changed)
    return changed


def event(workspace: Path, name: str, step: str, kind: str, **facts: Any) -> None:
    """Append one line to events.jsonl."""
    line = {"time": round(time.time(), 3), "step": step, "event": kind, "pid": os.getpid(), **facts}
    with (folder(workspace, name) / "events.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def groups_of(steps: Iterable[Mapping[str, Any]], name: str) -> list[tuple[Mapping[str, Any], str]]:
    """(step, part) with the groups that step `name` made a side table of: every table among its inputs, in order."""
    named = {step["name"]: step for step in steps}
    found = (ref.partition("/") for ref in named[name].get("inputs", ()))
    return [(named[origin], part) for origin, _, part in found if part in TABLES and origin in named]


def log_path(workspace: Path, name: str, step: str) -> Path:
    return folder(workspace, name) / "logs" / f"{step}.log"


def progress_path(workspace: Path, name: str) -> Path:
    return folder(workspace, name) / "progress.json"


def progress(workspace: Path, name: str) -> dict[str, Any] | None:
    """How far the running stage is, {step, done, total, unit}; None before it has said so."""
    try:
        found = json.loads(progress_path(workspace, name).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a log, without reading all of it."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 200 * lines - 4096))
        return file.read().decode(errors="replace").splitlines()[-lines:]


@contextlib.contextmanager
def hold(workspace: Path, name: str) -> Iterator[None]:
    """Be the one process that drives this run. The kernel frees it when the holder dies."""
    try:
        with files.locked(folder(workspace, name) / ".lock", str(os.getpid()), _PATIENCE):
            yield
    except files.Held as holder:
        raise UserError(f"run {name!r} is going on in process {holder}; watch it with `align status {name}` or stop "
                        "that process first") from None


def outcome(workspace: Path, run: Run) -> str:
    """The recorded outcome, or "interrupted" for one that says running while nobody drives it."""
    if run.outcome != RUNNING:
        return run.outcome
    return RUNNING if files.is_locked(folder(workspace, run.name) / ".lock") else INTERRUPTED
