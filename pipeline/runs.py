"""A run's folder: what it is, where its steps are in the store, what happened when.

    <workspace>/runs/<name>/run.json       config (resolved), changes of single steps, steps with their keys, outcome
                            events.jsonl   started / finished / failed / cached, with times
                            metrics.jsonl  every metric any stage reported
                            progress.json  how far the running step is; progress-<step>.json where several may run
                            logs/<step>.log

These files decide what is done; no orchestrator is asked.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.errors import UserError, command

NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
TABLES = ("groups", "pref", "sft", "unlabeled", "eval")  # the parts of artifacts that are tables of groups
_RESERVE, _RESERVED = ".reserve", 2**18  # bytes on the disk for the last words of a run that fills it
_PATIENCE = 1.0  # seconds; `align status` and the page look at the lock for a moment, too
RUNNING, DONE, FAILED, INTERRUPTED, STALE = "running", "done", "failed", "interrupted", "stale"
SCHEMA = 1  # of run.json; one without is of older code
SEAL = "record_hash"  # of the rest of run.json; those of older code have none
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
    schema: int = SCHEMA


_KINDS: dict[str, type | tuple[type, ...]] = {
    "name": str, "config": dict, "overrides": list, "step_overrides": dict, "steps": list, "outcome": str,
    "created": (int, float)}
_GROUPS = ("choices", "model", "data", "objective", "stage", "recipe")  # of config: mappings, where they are


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
        data = files.parsed(path.read_bytes())
        problem = record_problem(data, name)
    except (ValueError, OSError) as error:
        problem = str(error)
    if problem:
        raise UserError(f"{path}: not a run record ({problem}); move runs/{name} away or give another run=NAME; what "
                        "the run has made stays in the store, and a new one with its settings goes on from there")
    known = {f.name: data[f.name] for f in fields(Run) if f.name in data}
    return Run(**{**known, "config": _renamed(data["config"])})


def record_problem(data: Any, name: str) -> str:
    """Why this, read from run.json, is not the record of the run `name`; "" where it is."""
    if not isinstance(data, dict):
        return "it is no mapping"
    schema = data.get("schema", 0)
    if not isinstance(schema, int) or schema > SCHEMA:
        return f"its schema is {schema!r}, this version reads up to {SCHEMA}: use the newer version that wrote it"
    if SEAL in data and data[SEAL] != files.seal(data, SEAL):
        return "its content changed, its hash is not the one it carries"
    if wrong := [key for key, kind in _KINDS.items() if not isinstance(data.get(key), kind)]:
        return f"{', '.join(wrong)} missing or of another kind"
    if data["name"] != name:
        return f"it is that of run {data['name']!r}"
    if wrong := [key for key in _GROUPS if not isinstance(data["config"].get(key, {}), dict | None)]:
        return f"config.{wrong[0]} is no mapping"
    changes, configs = data["step_overrides"].values(), data.get("step_configs", {})
    if not (isinstance(configs, dict) and all(isinstance(config, dict) for config in configs.values())
            and all(isinstance(words, list) for words in changes)):
        return "step_overrides or step_configs of another kind"
    texts = [*data["overrides"], *(data["config"].get("choices") or {}).values(), *(word for words in changes
                                                                                     for word in words)]
    if wrong := [text for text in texts if not isinstance(text, str)]:
        return f"{wrong[0]!r} is no text"
    bad = [step for step in data["steps"] if not _is_step(step)]
    return f"{str(bad[0])[:60]} is no step" if bad else ""


def _is_step(step: Any) -> bool:
    return (isinstance(step, dict) and all(isinstance(step.get(key), str) for key in ("name", "stage", "state"))
            and isinstance(step.get("iteration"), int) and isinstance(step.get("key"), str | None)
            and isinstance(step.get("seconds", 0), int | float) and isinstance(step.get("inputs", []), list)
            and all(isinstance(ref, str) for ref in step.get("inputs", [])))


def _renamed(node: Any) -> Any:
    """A configuration with every module called by its name of today."""
    if isinstance(node, dict):
        return {key: _renamed(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_renamed(value) for value in node]
    return MOVED.get(node, node) if isinstance(node, str) else node


def save(workspace: Path, run: Run) -> None:
    """Write run.json; on a full disk in the room that `hold` keeps for it."""
    path, text = folder(workspace, run.name) / "run.json", json.dumps(files.sealed(vars(run), SEAL), indent=1)
    try:
        files.write_atomic(path, text)
    except OSError as error:
        if not files.no_room(error):
            raise
        path.with_name(_RESERVE).unlink(missing_ok=True)
        files.write_atomic(path, text)


def update_step(workspace: Path, run: Run, name: str, **facts: Any) -> Run:
    """The run with new facts of one step, saved."""
    changed = replace(run, steps=[{**s, **facts} if s["name"] == name else s for s in run.steps])
    save(workspace, changed)
    return changed


def event(workspace: Path, name: str, step: str, kind: str, **facts: Any) -> None:
    """Append one line to events.jsonl."""
    line = {"time": round(time.time(), 3), "step": step, "event": kind, "pid": os.getpid(), **facts}
    files.append_line(folder(workspace, name) / "events.jsonl", json.dumps(line))


def groups_of(steps: Iterable[Mapping[str, Any]], name: str) -> list[tuple[Mapping[str, Any], str]]:
    """(step, part) with the groups that step `name` made a side table of: every table among its inputs, in order."""
    named = {step["name"]: step for step in steps}
    found = (ref.partition("/") for ref in named[name].get("inputs", ()))
    return [(named[origin], part) for origin, _, part in found if part in TABLES and origin in named]


def log_path(workspace: Path, name: str, step: str) -> Path:
    return folder(workspace, name) / "logs" / f"{step}.log"


def sign_of_life(workspace: Path, name: str) -> float:
    """When a step of the run last wrote anything, or one began or ended; Unix time, 0 where there is nothing.

    Not what is written beside it whatever it does: how busy the machine is, what was sent to whom, what somebody noted.
    """
    place = folder(workspace, name)
    written = [place / file for file in ("run.json", "events.jsonl", "metrics.jsonl")]
    written += place.glob("progress*.json")
    logs = (path for path in (place / "logs").glob("*.log") if path.stem not in ("notify", "tracking", "warm"))
    return max((path.stat().st_mtime for path in (*written, *logs) if path.exists()), default=0.0)


def progress_path(workspace: Path, name: str, step: str = "") -> Path:
    """step: of one beside which others may run."""
    return folder(workspace, name) / (f"progress-{step}.json" if step else "progress.json")


def progress(workspace: Path, name: str, step: str) -> dict[str, Any] | None:
    """How far the running step is, {step, done, total, unit, time, began}; None before it has said so."""
    for path in (progress_path(workspace, name, step), progress_path(workspace, name)):
        with contextlib.suppress(OSError):
            found = progress_of(path.read_bytes())
            if found is not None and found["step"] == step:
                return found
    return None


def progress_of(written: bytes) -> dict[str, Any] | None:
    """The content of progress.json; None for what is none."""
    number = (int, float)
    found = files.parsed_lines(written, step=str, done=number, total=number, unit=str)
    began = found[0].get("began") if found else None
    whole = began is None or (isinstance(began, dict)
                              and all(isinstance(began.get(key), number) for key in ("done", "time")))
    return found[0] if found and whole and isinstance(found[0].get("time", 0), number) else None


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
            reserve = folder(workspace, name) / _RESERVE
            for torn in folder(workspace, name).glob(".*.tmp"):  # of a write that was killed
                torn.unlink(missing_ok=True)
            try:
                _reserve(reserve)
                yield
            finally:
                with contextlib.suppress(OSError):  # a disk that turned read-only
                    reserve.unlink(missing_ok=True)
    except files.Held as holder:
        raise UserError(f"run {name!r} is going on in process {holder}; watch it or stop it with:"
                        f"{command(workspace, 'logs', name, '-f')}{command(workspace, 'stop', name)}") from None


def _reserve(path: Path) -> None:
    try:
        path.write_bytes(bytes(_RESERVED))
    except OSError as error:
        if not files.no_room(error):
            raise
        raise UserError(f"workspace: the disk of {path.parent} is full, a run needs {_RESERVED} bytes for its record "
                        "alone; make room, this removes what no run needs:"
                        f"{command(path.parents[2], 'gc', '--apply')}") from None


def outcome(workspace: Path, run: Run) -> str:
    """The recorded outcome, or "interrupted" for one that says running while nobody drives it."""
    if run.outcome != RUNNING:
        return run.outcome
    return RUNNING if files.is_locked(folder(workspace, run.name) / ".lock") else INTERRUPTED
