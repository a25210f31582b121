"""An engine that waits for the next run of its workspace: what is written of it, and who may have it.

    <workspace>/engine/waiting.json   what it is and where; it lies there only while the engine waits
                       lock           held by the run that uses the engine, or that will leave one

Both are their owner's alone: the engine's key is in the record. The kernel frees the lock of a run that was killed,
and a keeper ends what it keeps as soon as nobody holds the lock and no record names it (`verdict`). So nobody has to
be alive, and no clock be right, for an engine to end.
"""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline import files

TOLD = 143  # exit code of what was told to end
_RECORD, _LOCK = "waiting.json", "lock"
_END_SECONDS = 10.0  # from SIGTERM to SIGKILL of a keeper, which has its server to end


class Unusable(Exception):
    """Why a run cannot go on with the engine that waited."""


def folder(workspace: Path) -> Path:
    return workspace.resolve() / "engine"


def record_path(place: Path) -> Path:
    return place / _RECORD


def read(place: Path) -> dict[str, Any] | None:
    """The record, with at least `seconds` (how long it waits) and `pids` (its keepers); None where nothing waits on
    this machine that is this user's.
    """
    found, path = None, record_path(place)
    with contextlib.suppress(OSError):
        found = files.read_sealed(path) if path.stat().st_uid == os.getuid() else None
    return found if found is not None and found.get("host") == socket.gethostname() else None


def claim(place: Path) -> contextlib.ExitStack | None:
    """The lock, until the stack is closed; None where another run, or another user, has it."""
    held = contextlib.ExitStack()
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        held.enter_context(files.locked(place / _LOCK, str(os.getpid()), wait=1.0))  # keepers look at it for a moment
    except (files.Held, PermissionError):
        return None
    return held


def take(place: Path) -> dict[str, Any] | None:
    """The record, which is gone then. For who holds the lock."""
    found = read(place)
    record_path(place).unlink(missing_ok=True)
    return found


def leave(place: Path, record: dict[str, Any]) -> None:
    """Let the engine wait. For who holds the lock, and gives it up behind this."""
    files.write_sealed(record_path(place), {**record, "host": socket.gethostname()}, durable=False, mode=0o600)


def verdict(place: Path) -> Callable[[], int | None]:
    """What a keeper asks again and again: the exit code with which to end now, None to go on.

    It goes on while a run holds the lock, and for the record's seconds while one that names it lies there.
    """
    since: list[float] = []  # when it was first seen waiting, on a clock that nobody sets

    def named() -> dict[str, Any] | None:
        found = read(place)
        return found if found is not None and os.getpid() in found["pids"] else None

    def told() -> int | None:
        if (record := named()) is None:
            since.clear()
            return None if files.is_locked(place / _LOCK) or named() else TOLD  # it may just have been left
        since[:] = since or [time.monotonic()]
        if time.monotonic() - since[0] < record["seconds"] or (held := claim(place)) is None:
            return None  # its time is not over, or a run takes it at this moment
        with held:
            return TOLD if read(place) == record and take(place) else None

    return told


@dataclass(frozen=True)
class Keeper:
    """A keeper that an earlier run has started, with what is needed of subprocess.Popen."""

    pid: int
    place: Path  # its command line names it, so another process with this pid is not taken for it

    def poll(self) -> int | None:
        return TOLD if self.process() is None else None

    def terminate(self) -> None:
        if (process := self.process()) is not None:
            process.terminate()

    def wait(self, timeout: float = float("inf")) -> int:
        """Raises subprocess.TimeoutExpired."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("keeper", timeout)
            time.sleep(0.05)
        return TOLD

    def process(self) -> psutil.Process | None:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            if process.status() != psutil.STATUS_ZOMBIE and str(self.place) in process.cmdline():
                return process
        return None


def keepers(place: Path, record: dict[str, Any]) -> tuple[Keeper, ...]:
    return tuple(Keeper(pid, place) for pid in record["pids"])


def clear(place: Path) -> bool | None:
    """End the engine that waits. Whether one did; None where a run has it."""
    if (held := claim(place)) is None:
        return None
    with held:
        found = take(place)
        stop(keepers(place, found) if found else ())
    return found is not None


def stop(processes: Iterable[subprocess.Popen[bytes] | Keeper]) -> None:
    """End keepers and what they keep, and wait until they have ended."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            _kill_tree(process.pid)
            process.wait()


def _kill_tree(pid: int) -> None:
    tree = list[psutil.Process]()
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        tree = [*root.children(recursive=True), root]
    for process in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(tree, timeout=5)
