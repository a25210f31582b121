"""Files written so that a reader sees the old or the new one, hashed and made durable: the only such code."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

ALGORITHM = "sha256"


_CHUNK = 1 << 20


def canonical(data: Any) -> str:
    """One text per value: sorted keys, no NaN, plain data only."""
    return json.dumps(data, sort_keys=True, allow_nan=False, separators=(",", ":"), ensure_ascii=True)


def file_hash(path: Path) -> str:
    hasher = hashlib.new(ALGORITHM)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Write a small file so that readers see the old or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_sync_folder = _sync  # a folder's entries become durable the same way
