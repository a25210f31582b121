"""The training bench runs, and its sides do the same work: without TRL, on a very small model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def test_quick_bench_compares_equal_work(tmp_path):
    """Shared prompts and separate rows have the same losses on the same batches, the first ln 2: policy = reference."""
    made = subprocess.run(
        [sys.executable, "scripts/bench_training.py", "--quick", "--no-trl", "--only", "dpo", "memory", "loading",
         "--precision", "float32", "--threads", "1", "--json", str(tmp_path / "out.json")],
        cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert made.returncode == 0, made.stderr[-3000:]
    found = json.loads((tmp_path / "out.json").read_text())
    dpo = found["dpo"]["float32"]
    ours, rows = dpo["ours"], dpo["ours, rows instead of shared prompts"]
    assert ours["losses"] == pytest.approx(rows["losses"], abs=1e-4)
    assert ours["losses"][0] == pytest.approx(0.693147, abs=1e-4) != ours["losses"][1]
    assert ours["cpu_seconds"] > 0 and 0 < dpo["of_matmul_peak"] < 1.5
    (share,) = dpo["targets"]
    assert share["met"] == (dpo["of_matmul_peak"] >= 0.4) and "target at least 0.4: " in made.stdout
    assert found["memory"]["targets"][0]["met"] and list(found["machine"]["matmul_gflops"]) == ["float32"]
    assert found["loading"]["groups"] == 20_000 and found["loading"]["tokens"] == 10_000 * 50
