"""Where a step's seconds go: imports, loading, writing, hashing, and the rest, which is its work.

    with counting() as spent:       # {"compute": 1.0, "load": 0.4, ...} at the end
        with spending("load"): ...

A block inside another takes its seconds from that one, so the parts add up to the whole. Only what runs in the thread
that counts is counted: a thread beside it costs no time of its own. Nobody counts: a block costs nothing.
"""

import builtins
import contextlib
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

COMPUTE, IMPORT, LOAD, WRITE, HASH = PARTS = ("compute", "import", "load", "write", "hash")


@dataclass
class _Clock:
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    on: list[str] = field(default_factory=lambda: [COMPUTE])
    since: float = field(default_factory=lambda: time.perf_counter())

    def turn(self) -> None:
        now = time.perf_counter()
        self.spent[self.on[-1]] += now - self.since
        self.since = now


_RUNNING: ContextVar[_Clock | None] = ContextVar("clock", default=None)  # a new thread has none


@contextlib.contextmanager
def counting() -> Iterator[dict[str, float]]:
    """Count seconds by part while the block runs; complete at its end. Imports are counted by themselves."""
    clock, real = _Clock(), builtins.__import__

    def counted(name: str, *more: Any, **named: Any) -> Any:
        if name in sys.modules:
            return real(name, *more, **named)
        with spending(IMPORT):
            return real(name, *more, **named)

    token = _RUNNING.set(clock)
    builtins.__import__ = counted
    try:
        yield clock.spent
    finally:
        builtins.__import__ = real
        _RUNNING.reset(token)
        clock.turn()


@contextlib.contextmanager
def spending(part: str) -> Iterator[None]:
    """The block's seconds go to that part, where somebody counts. Decorates a function as well."""
    clock = _RUNNING.get()
    if clock is None:
        yield
        return
    clock.turn()
    clock.on.append(part)
    try:
        yield
    finally:
        clock.turn()
        clock.on.pop()
