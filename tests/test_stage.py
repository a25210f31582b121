"""What a stage is given: the measure of its memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import files, stage, worker
from pipeline.stage import Reporter

ROOT = Path(__file__).parent.parent
MB = 2**20


def child(work: str) -> int:
    """Peak memory of a fresh process that does `work`, bytes."""
    code = f"from pipeline.stage import peak_memory\n{work}\nprint(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    return int(done.stdout)


def test_memory_let_go_still_counts():
    """128 MB written and freed."""
    assert child("held = b'x' * 2**27; del held") - child("") == pytest.approx(128 * MB, rel=0.1)


def test_what_the_parent_holds_does_not_count():
    """Linux's ru_maxrss of a child is at least what its parent held when it was started."""
    held = np.ones(300 * MB, np.uint8)
    assert child("") < 100 * MB < held.nbytes < stage.peak_memory()


def test_what_a_killed_process_reported_is_not_written_twice(tmp_path):
    """From the line where this work began: an older run of the step had other numbers."""
    metrics, work = tmp_path / "metrics.jsonl", tmp_path / "work"
    Reporter("r", "sft", metrics).metric(10, loss=9.0)
    work.mkdir()
    since = worker._since(work, metrics)
    first = Reporter("r", "sft", metrics, since=since)
    for at, loss in ((10, 1.0), (20, 0.9)):
        first.metric(at, loss=loss)
    Reporter("r", "reward", metrics).metric(30, loss=5.0)
    with metrics.open("a") as file:
        file.write('{"step": "sft", "at": 30, "lo')  # killed
    assert worker._since(work, metrics) == since
    again = Reporter("r", "sft", metrics, since=since)
    for at, loss in ((10, 1.0), (20, 0.9), (30, 0.8)):
        again.metric(at, loss=loss)
    again.metric(20, held_out=0.5)
    lines = files.parsed_lines(metrics.read_bytes(), step=str)
    assert [(line["step"], line["at"], line.get("loss")) for line in lines] == [
        ("sft", 10, 9.0), ("sft", 10, 1.0), ("sft", 20, 0.9), ("reward", 30, 5.0), ("sft", 30, 0.8), ("sft", 20, None)]
