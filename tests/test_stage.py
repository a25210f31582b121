"""What a stage is given: the measure of its memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import stage

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
