"""The workspace as the page may see it: names checked, nothing outside its folders, small files remembered.

Every path a request can name goes through `Files.path`. What is remembered is a copy of what is on disk, found again by
the file's size and time, so a restart loses nothing.
"""

import contextlib
import os
import re
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from pipeline import files, runs, store
from pipeline.errors import nearest

STEP = re.compile(r"^[a-z_]{1,64}(\[\d{1,6}\])?$")
_KIND = re.compile(r"^[a-z_]{1,64}$")
_KEY = re.compile(r"^[0-9a-f]{8,64}$")
_PART = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,63}$")
_REMEMBERED = 2**15


class NotHere(Exception):
    """What was asked for is not there, or not the page's to show."""


class Files:
    """Reads one workspace. Safe to use from several threads."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self._roots: dict[str, str] = {}
        self._known: OrderedDict[Hashable, tuple[Hashable, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def path(self, top: str, *parts: str) -> Path:
        """`workspace/top/parts`, followed to where it really is. NotHere if that is outside of `workspace/top`.

        `top` itself may be a link (a workspace whose artifacts lie on another disk); nothing below it may lead out.
        """
        root = self._roots.setdefault(top, os.path.realpath(self.workspace / top))
        found = os.path.realpath(os.path.join(root, *parts))
        if found != root and not found.startswith(root + os.sep):
            raise NotHere(f"{'/'.join(parts)} leads out of {top}/")
        return Path(found)

    def remember(self, key: Hashable, signature: Hashable, make: Callable[[], Any]) -> Any:
        """The cached result of `make()` for `key`. A new `signature` makes the cached result void."""
        with self._lock:
            known = self._known.get(key)
            if known is not None and known[0] == signature:
                self._known.move_to_end(key)
                return known[1]
        made = make()
        with self._lock:
            self._known[key] = (signature, made)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return made

    def json(self, path: Path) -> Any:
        """The content of a JSON file, None where it is missing or half written."""
        sign = signature(path)
        return None if sign is None else self.remember(("json", path), sign, lambda: _parse(path))

    def run_names(self) -> list[str]:
        """Every run that lies in the workspace, newest first."""
        found = []
        for record in (self.workspace / "runs").glob("*/run.json"):
            name, sign = record.parent.name, signature(record)
            if sign is None or not runs.NAME.match(name):
                continue
            with contextlib.suppress(NotHere):  # a link that leads out
                if record.parent.is_symlink() or record.is_symlink():
                    self.path("runs", name, "run.json")
                found.append((sign[0], name))
        return [name for _, name in sorted(found, reverse=True)]

    def run_path(self, name: str, *parts: str) -> Path:
        if not runs.NAME.match(name):
            raise NotHere(f"{name!r} is no run's name")
        return self.path("runs", name, *parts)

    def run(self, name: str, kept: bool = True) -> dict[str, Any]:
        """run.json; kept: remembered whole. NotHere, naming those of a similar name, if there is no such run or its
        record cannot be read.
        """
        path = self.run_path(name, "run.json")
        record = self.json(path) if kept else _parse(path)
        if signature(path) is None:
            raise NotHere(f"no run named {name!r}{nearest(name, self.run_names())}")
        if problem := self.remember(("problem", path), signature(path), lambda: runs.record_problem(record, name)):
            raise NotHere(f"the record of run {name!r} cannot be read: {problem}; move runs/{name} away")
        return dict(record)

    def manifest(self, kind: str, key: str | None) -> dict[str, Any] | None:
        """An artifact's manifest, None if there is no such artifact."""
        if not key or not _KIND.match(kind) or not _KEY.match(key):
            return None
        direct = self.workspace / "artifacts" / kind / key / store.MANIFEST
        sign = signature(direct)
        if sign is None:
            return None
        # a link put in its place has another signature, and is followed anew
        found = self.remember(("manifest", kind, key), sign,
                              lambda: _parse(self.path("artifacts", kind, key, store.MANIFEST)))
        return None if found is None or self._wrong(kind, key, sign, found) else dict(found)

    def _wrong(self, kind: str, key: str, sign: Hashable, manifest: Any) -> Any:
        return self.remember(("whole", kind, key), sign, lambda: store.manifest_problems(kind, key, manifest))

    def artifact(self, kind: str, key: str, *parts: str) -> Path:
        """A place inside an artifact. NotHere if the names are no artifact's."""
        if not _KIND.match(kind) or not _KEY.match(key):
            raise NotHere(f"{kind}/{key} is no artifact's name")
        return self.path("artifacts", kind, key, *parts)

    def table(self, kind: str, key: str, part: str) -> Path:
        """The folder of a table: of the artifact, or of the work in progress where it is not finished yet."""
        if not _PART.match(part):
            raise NotHere(f"{part!r} is no table's name")
        done = self.artifact(kind, key, part)
        return done if done.is_dir() else self.path("artifacts", kind, f".work-{key}", "out", part)

    def driven(self, name: str) -> bool:
        """Whether a process holds the run. Looks at the lock for a moment; whoever takes it waits longer than that."""
        return files.is_locked(self.run_path(name, ".lock"))


def signature(path: Path) -> tuple[int, int, int] | None:
    """Time, size and inode of a regular file; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino) if stat.S_ISREG(found.st_mode) else None


def _parse(path: Path) -> Any:
    try:
        return files.parsed(path.read_bytes())
    except (OSError, ValueError):
        return None
