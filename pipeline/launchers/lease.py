"""What a driver and the node's side of its step tell each other, in two files of the step's work folder.

    launch.json  the driver's: whose order holds (token), the job's id, a beat that counts up, a request to stop
    node.json    the node's: which order it works at, on which host and pid, and its exit code at the end

Whoever starts a step writes a new token. The node's side of an older order sees that and ends; so does one whose driver
no longer beats. So two processes never write into one work folder, whichever of driver, connection and node dies: the
files are seen by both sides, or there is nothing to write into.
"""

import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import psutil

from pipeline import files

_LEASE, _NODE = "launch.json", "node.json"
_SEEN = 60.0  # seconds until a client of NFS sees what another one has written, at the latest
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Lease:
    """The content of launch.json."""

    token: str
    job: str = ""  # of a scheduler that starts the step
    lost: float = 0.0  # seconds without a beat after which the node's side ends; 0: it goes on without its driver
    beat: int = 0
    stop: bool = False
    heard: bool = False  # the driver has taken note of its end


def take(work: Path, grace: float, lost: float) -> Lease:
    """Be the one whose order holds: what works in the folder by an older one has ended when this returns."""
    clear(work, grace)
    lease = Lease(secrets.token_hex(8), lost=lost)
    write(work, lease)
    return lease


def clear(work: Path, grace: float) -> None:
    """Have what works in the folder by an older order end, and wait until it has, or must have."""
    if (old := read(work)) is None:
        return
    if not old.stop:
        write(work, replace(old, stop=True))
    deadline = time.monotonic() + (old.lost or _SEEN) + grace
    while _running(work, old.token) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    (work / _LEASE).unlink(missing_ok=True)


def write(work: Path, lease: Lease) -> None:
    files.write_atomic(work / _LEASE, json.dumps(asdict(lease)), durable=False)


def read(work: Path) -> Lease | None:
    """None where nobody has given an order. Raises OSError where the folder cannot be read."""
    found = _read(work / _LEASE)
    return Lease(**{f.name: found[f.name] for f in fields(Lease) if f.name in found}) if "token" in found else None


def begin(work: Path, token: str) -> None:
    """On the node: say that it works at this order."""
    _tell(work, token, None)


def end(work: Path, token: str, code: int) -> None:
    """On the node: say how it ended."""
    _tell(work, token, code)


def begun(work: Path, token: str) -> str:
    """The host that works, or has worked, at this order; "" where none has begun."""
    found = _read(work / _NODE)
    return str(found["host"]) if found.get("token") == token else ""


def ended(work: Path, token: str) -> int | None:
    """The exit code of this order's step, None where it has not ended."""
    found = _read(work / _NODE)
    code = found.get("code") if found.get("token") == token else None
    return code if isinstance(code, int) else None


def holds(work: Path, token: str) -> bool:
    """Whether this order is the one to work at."""
    lease = read(work)
    return lease is not None and lease.token == token and not lease.stop


def obeying(work: Path, token: str, also: Callable[[], bool] = lambda: False) -> Callable[[], int | None]:
    """For the supervisor on the node: 143 once the order no longer holds, its driver beats no more, another node of it
    has failed, or `also` says so; else None.
    """
    seen, at = -1, time.monotonic()

    def told() -> int | None:
        nonlocal seen, at
        try:
            lease, over = read(work), not holds(work, token) or ended(work, token)
        except OSError:  # a file server that hangs for a moment; the beats are then missing, too
            return None
        now = time.monotonic()
        if lease is None or over or also():
            return 143
        seen, at = (lease.beat, now) if lease.beat != seen else (seen, at)
        return 143 if lease.lost and now - at > lease.lost else None

    return told


def _tell(work: Path, token: str, code: int | None) -> None:
    told = {"token": token, "host": socket.gethostname(), "pid": os.getpid(), "code": code}
    files.write_atomic(work / _NODE, json.dumps(told), durable=False)


def _running(work: Path, token: str) -> bool:
    """Whether the order's process may still run: on this host it is looked for."""
    found = _read(work / _NODE)
    if found.get("token") != token or found.get("code") is not None:
        return False
    if found["host"] != socket.gethostname():
        return True
    try:
        return token in psutil.Process(found["pid"]).cmdline()
    except psutil.NoSuchProcess:
        return False


def _read(path: Path) -> dict[str, Any]:
    try:
        found = files.parsed(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
