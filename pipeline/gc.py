"""What no run needs any more, and how much space it holds."""

import contextlib
import functools
import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from pipeline import files, runs, store

_KEY = re.compile(r'"key":\s*"([^"]+)"')  # as run.json and events.jsonl have it; found in a torn line, too


@dataclass(frozen=True)
class Garbage:
    """A folder that can go: why, and its size in bytes."""

    path: Path
    reason: str
    size: int


def find_garbage(workspace: Path) -> list[Garbage]:
    """Artifacts that no run points at, work folders of artifacts nobody is computing or will finish, left-over trash.

    A finished run keeps what its run.json names. A run that did not come to its end, or whose run.json is lost, keeps
    every artifact it ever pointed at (events.jsonl): it could still reuse them. The work folder of an unfinished step
    is kept so that the run can go on from there. Writes nothing.
    """
    kept = _kept(workspace)
    found = []
    for folder in sorted((workspace / "artifacts").glob("*/*")):
        reason = _reason(workspace, folder, kept)
        if reason and not files.is_locked(store.lock_path(workspace, folder.parent.name, _key(folder))):
            found.append(Garbage(folder, reason, size(folder)))
    return found


def remove(workspace: Path, garbage: list[Garbage]) -> int:
    """Delete it: each folder under its lock, and only if no run needs it by now. Returns the bytes freed."""
    freed = 0
    for item in garbage:
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(store.lock(workspace, item.path.parent.name, _key(item.path)))
            except store.Busy:
                continue
            except OSError as error:
                if not files.no_room(error):
                    raise  # on a full disk a lock that is not there yet is nobody's
            if item.path.is_dir() and _reason(workspace, item.path, _kept(workspace)):
                (item.path / store.MANIFEST).unlink(missing_ok=True)  # killed from here on, it is no artifact
                shutil.rmtree(item.path)
                freed += item.size
    return freed


def _reason(workspace: Path, folder: Path, kept: frozenset[str] | None) -> str:
    """Why the folder can go; "" where it cannot."""
    kind, name, key = folder.parent.name, folder.name, _key(folder)
    if name.startswith(".trash-"):
        return "left over from a replaced artifact"
    if name.startswith(".work-") and store.find(workspace, kind, key) is not None:
        return "work beside its finished artifact"
    if kept is None or key in kept:
        return ""
    return "unfinished work of no run" if name.startswith(".work-") else "no run points at it"


def _key(folder: Path) -> str:
    name = folder.name.removeprefix(".work-")
    return name.removeprefix(".trash-").rpartition("-")[0] if name.startswith(".trash-") else name


def _kept(workspace: Path) -> frozenset[str] | None:
    """Every key that a run needs; None where a run cannot be asked, which may need any."""
    found = list(_by_run(workspace).values())
    return None if None in found else frozenset[str]().union(*(keys for keys in found if keys is not None))


def unreadable(workspace: Path) -> list[Path]:
    """The folders of runs that do not say what they need. While there is one, every finished artifact stays."""
    return [folder for folder, keys in _by_run(workspace).items() if keys is None]


def _by_run(workspace: Path) -> dict[Path, frozenset[str] | None]:
    return {folder: _keys(folder, *(_mark(folder / name) for name in ("run.json", "events.jsonl", "labels.json")))
            for folder in sorted((workspace / "runs").glob("*")) if folder.is_dir()}


def _mark(path: Path) -> tuple[int, ...]:
    """Another one whenever the file has changed; () where there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return ()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


@functools.cache
def _keys(folder: Path, record: tuple[int, ...], events: tuple[int, ...],
          labels: tuple[int, ...]) -> frozenset[str] | None:
    """The keys that the run of this folder keeps; None where its record cannot be read and nothing else says them.

    record, events, labels: marks of its files, so that each is read once. labels.json names what was judged by hand.
    """
    written = _text(folder / "run.json", record) or ""
    judged, happened = _text(folder / "labels.json", labels), _text(folder / "events.jsonl", events)
    if judged is None or happened is None:
        return None
    named = _KEY.findall(written + judged)
    try:
        content = files.parsed(written)
        whole = not runs.record_problem(content, folder.name)
    except ValueError:
        whole = False
    if whole and (content["outcome"] == runs.DONE or content["outcome"].startswith(runs.STOPPED_BY)):
        return frozenset(named)
    keys = frozenset(named + _KEY.findall(happened))
    return keys if keys or whole or not record else None


def _text(path: Path, mark: tuple[int, ...]) -> str | None:
    """Of a run's file; "" where there is none, None where it cannot be read."""
    try:
        return path.read_text(errors="replace") if mark else ""
    except OSError:
        return None


def size(folder: Path) -> int:
    """Bytes of the files in it, as far as nobody is removing them."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found = os.lstat(os.path.join(place, name))
                total += found.st_size if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 else 0  # the user's stays
    return total
