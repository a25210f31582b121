"""Seconds by part: what is inside takes from what is around it, and the parts are the whole."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

import pytest

from pipeline import clock
from pipeline.clock import counting, spending


@pytest.fixture
def tick(monkeypatch):
    """tick(seconds) moves the clock."""
    now = [100.0]
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def test_blocks_in_blocks(tick):
    """1 of work, 2 of loading around 4 of writing and 8 more of loading, 16 of work: 17, 10, 4."""
    with counting() as spent:
        tick(1)
        with spending("load"):
            tick(2)
            with spending("write"):
                tick(4)
            tick(8)
        tick(16)
    assert spent == {"compute": 17.0, "load": 10.0, "write": 4.0, "import": 0.0, "hash": 0.0}


def test_a_function_and_a_failure(tick):
    """Decorated, called twice, the second time without an end: its seconds are there, what follows is work again."""
    @spending("write")
    def put(seconds: float) -> None:
        tick(seconds)
        if seconds > 1:
            raise ValueError

    with counting() as spent:
        put(1)
        with pytest.raises(ValueError):
            put(3)
        tick(5)
    assert (spent["write"], spent["compute"]) == (4.0, 5.0)


def test_imports_are_counted_by_themselves(tick, tmp_path, monkeypatch):
    """A module that takes 3 seconds while it is imported, its parent 2; once they are there, nothing."""
    package = tmp_path / "slow_package"
    package.mkdir()
    (package / "__init__.py").write_text("import slow_clock; slow_clock.tick(2)\n")
    (package / "part.py").write_text("import slow_clock; slow_clock.tick(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "slow_clock", SimpleNamespace(tick=tick))
    try:
        with counting() as spent:
            import slow_package.part  # type: ignore[import-not-found]
            from slow_package import part  # noqa: F401
            tick(1)
    finally:
        for name in [name for name in sys.modules if name.startswith("slow_package")]:
            del sys.modules[name]
    assert (spent["import"], spent["compute"]) == (5.0, 1.0)
    assert slow_package.part


def test_nobody_counts_and_a_thread_beside(tick):
    with spending("load"):  # costs nothing, fails at nothing
        tick(1)

    def beside() -> None:
        with spending("hash"):
            tick(7)

    with counting() as spent:
        thread = threading.Thread(target=beside)
        thread.start()
        thread.join()
    assert spent["hash"] == 0.0 and spent["compute"] == 7.0
