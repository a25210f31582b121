"""The small run that nobody disturbs, and who forks the stages of others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.chaos import kills, small
from tests.flows.conftest import drive, prefect, two_steps  # noqa: F401  # pytest finds fixtures by name here
from tests.flows.test_records import two_runs  # noqa: F401


@pytest.fixture(scope="session")
def forking(warm: dict[str, str]) -> small.Warm:
    """The test run's warm server."""
    address = warm["ALIGNLOOP_WARM"]
    (server,) = (p for p in psutil.Process().children() if small.words(p)[-1:] == [address])
    return small.Warm(Path(address), server.pid)


@pytest.fixture(scope="session")
def reference(forking: small.Warm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The rows, and the workspace of an undisturbed small run."""
    place = tmp_path_factory.mktemp("chaos")
    rows = small.world(place / "rows")
    return rows, kills.undisturbed("plain", place, rows, forking)


@pytest.fixture
def tidy(forking: small.Warm) -> Iterator[str]:
    """The mark of the processes of a test's run; none of them outlives the test."""
    mark = f"test-{psutil.Process().pid}-{id(object())}"
    yield mark
    for process in small.marked(mark):
        with contextlib.suppress(psutil.Error):
            process.kill()
