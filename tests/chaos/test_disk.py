"""The short form of failing disks: a run of two steps in which a write fails. The long form is tests/chaos/disk.py."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import runs, store
from tests.chaos import disk, small

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")]


@pytest.fixture(scope="module")
def failing(tmp_path_factory) -> disk.Disk:
    place = tmp_path_factory.mktemp("disk")
    return disk.Disk(place / "control", disk.built(place))


def _drive(workspace: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "flows.driver", str(workspace), "shown", ""], capture_output=True,
                          text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(small.ROOT), **environment})


def _digests(workspace: Path) -> dict[str, str]:
    return {artifact.manifest["step"]: artifact.digest() for artifact in store.artifacts(workspace)}


@pytest.mark.parametrize("kind", range(len(disk.KINDS)), ids=[name for name, _, _ in disk.KINDS])
def test_a_write_that_fails_costs_one_line_and_no_byte(kind, two_steps, failing, tmp_path):
    """Two calls of every kind of failure, by seed; then the disk is whole and the same run goes on."""
    name, error, always = disk.KINDS[kind]
    workspace, rng = two_steps(), random.Random(f"1 {name}")
    start = tmp_path / "start"
    shutil.copytree(workspace, start)
    environment = {**small.NOWHERE, **failing.environment}
    failing.arm(workspace)
    assert _drive(workspace, environment).returncode == 0
    good, calls = _digests(workspace), failing.seen
    assert len(good) == 2 and calls > 50
    for call in rng.sample(range(1, calls), 2):
        shutil.rmtree(workspace)
        shutil.copytree(start, workspace)
        failing.arm(workspace, call, error, always)
        done = _drive(workspace, environment)
        assert "Traceback" not in done.stdout + done.stderr, (call, done.stdout + done.stderr)
        assert (done.returncode == 1 and "error: " in done.stderr) or not always, (call, done.stderr)
        failing.arm(workspace)
        again = _drive(workspace, environment)
        assert again.returncode == 0, (call, again.stdout + again.stderr)
        assert _digests(workspace) == good and runs.load(workspace, "shown").outcome == runs.DONE
        assert not list(workspace.rglob("*.tmp"))
