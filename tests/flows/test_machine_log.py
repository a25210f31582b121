"""A run's machine is looked at while it goes on, and a disk that cannot be written costs nothing but the lines."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil

from flows import machine_log


def test_lines_are_written_while_the_body_runs(tmp_path: Path):
    with machine_log.sampled(tmp_path, every=0.02):
        deadline = time.monotonic() + 10
        while not (tmp_path / machine_log.FILE).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    lines = [json.loads(line) for line in (tmp_path / machine_log.FILE).read_text().splitlines()]
    assert lines and all(0 <= line["cpu"] <= 1 for line in lines)
    assert 0 < lines[0]["own_memory_mb"] < lines[0]["memory_mb"] < psutil.virtual_memory().total / 2**20
    size = (tmp_path / machine_log.FILE).stat().st_size
    time.sleep(0.1)
    assert (tmp_path / machine_log.FILE).stat().st_size == size, "it has ended"


def test_a_folder_that_is_not_there_fails_nothing(tmp_path: Path):
    with machine_log.sampled(tmp_path / "gone", every=0.01):
        time.sleep(0.1)
    assert not (tmp_path / "gone").exists()
