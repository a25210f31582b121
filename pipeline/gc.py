"""What no run needs any more, and how much space it holds."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from pipeline import store
from pipeline.errors import UserError


@dataclass(frozen=True)
class Garbage:
    """A folder that can go: why, and its size in bytes."""

    path: Path
    reason: str
    size: int


def find_garbage(workspace: Path) -> list[Garbage]:
    """Artifacts that no run points at, work folders of artifacts nobody is computing or will finish, left-over trash.

    A run keeps every artifact its run.json names, finished or not; the work folder of an unfinished step is kept so
    that the run can go on from there.
    """
    kept = _kept(workspace)
    found = []
    for folder in sorted((workspace / "artifacts").glob("*/*")):
        kind, name = folder.parent.name, folder.name
        key = name.removeprefix(".work-")
        if name.startswith(".trash-"):
            found.append(Garbage(folder, "left over from a replaced artifact", _size(folder)))
        elif (kind, key) not in kept and not _held(workspace, kind, key):
            reason = "no run points at it" if key == name else "unfinished work of no run"
            found.append(Garbage(folder, reason, _size(folder)))
    return found


def remove(garbage: list[Garbage]) -> int:
    """Delete it. Returns the bytes freed."""
    for item in garbage:
        shutil.rmtree(item.path)
    return sum(item.size for item in garbage)


def _kept(workspace: Path) -> set[tuple[str, str]]:
    records = (workspace / "runs").glob("*/run.json")
    return {(step["stage"], step["key"]) for record in records for step in _steps(record) if step.get("key")}


def _steps(record: Path) -> list[dict[str, str]]:
    """Raises UserError for a record that cannot be read: what it keeps is unknown, so nothing may go."""
    try:
        return list(json.loads(record.read_text())["steps"])
    except (ValueError, KeyError) as error:
        raise UserError(f"{record}: not a run record ({error}); move it away first") from None


def _held(workspace: Path, kind: str, key: str) -> bool:
    try:
        with store.lock(workspace, kind, key):
            return False
    except store.Busy:
        return True


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
