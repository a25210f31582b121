"""Load a large table of preference pairs as training does and print what it takes: seconds and memory.

    python scripts/bench_loading.py [--groups 1000000] [--folder FOLDER]

Makes the table (20-token prompts, two completions of 30 tokens, texts beside them) and a side table of log-probs, then
in a process of its own loads both with every check, orders an epoch and goes through 200 global batches of 64. Memory
is the process's peak above what it held with torch, transformers and the training core imported.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import columns, tables
from pipeline.objectives.contract import Objective
from pipeline.stage import peak_memory

PROMPT, COMPLETION, PART = 20, 30, 8192
DIGEST = "made here"  # stands for the table's


def lists(rng: np.random.Generator, number: int, length: int) -> pa.ListArray:
    ids = rng.integers(3, 8000, number * length, dtype=np.int32)
    ids[length - 1::length] = 2
    return pa.ListArray.from_arrays(np.arange(0, (number + 1) * length, length, dtype=np.int32), pa.array(ids))


def make(table: Path, groups: int) -> None:
    """Write the table part by part, straight from arrays."""
    table.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index, start in enumerate(range(0, groups, PART)):
        n = min(PART, groups - start)
        both, nothing = 2 * n, pa.array([[]] * (2 * n), pa.list_(pa.int32()))
        given = {
            "text": pa.array(["an answer of thirty tokens or so, as people write them, with some words more"] * both),
            "token_ids": lists(rng, both, COMPLETION), "finish_reason": pa.array(["stop"] * both),
            "scores": pa.array([[("reward", 0.5)]] * both, pa.map_(pa.string(), pa.float64())),
            "prompt_ids": nothing,
        }
        kind = tables.SCHEMA.field("completions").type.value_type
        fields = [given.get(f.name, pa.nulls(both, f.type)).cast(f.type) for f in kind]
        completions = pa.StructArray.from_arrays(fields, fields=list(kind))
        message = [{"role": "user", "content": "a question of twenty tokens, more or less, about this or that"}]
        values = {
            "id": pa.array([f"group-{start + i:08d}" for i in range(n)]), "messages": pa.array([message] * n),
            "completions": pa.ListArray.from_arrays(np.arange(0, both + 1, 2, dtype=np.int32), completions),
            "prompt_ids": lists(rng, n, PROMPT), "label": pa.nulls(n), "weight": pa.array(np.ones(n)),
            "dataset": pa.array([""] * n), "iteration": pa.array(np.zeros(n, np.int32)),
        }
        rows = pa.table([values[f.name].cast(f.type) for f in tables.SCHEMA], schema=tables.SCHEMA)
        tables.put(tables.part_path(table, index), rows, 1024)
        logps = rng.normal(-40, 5, (n, 2)).tolist()
        columns.write_part(table.parent / "logps", index, (
            (DIGEST, name, [{columns.LOGP: value} for value in pair])
            for name, pair in zip(values["id"].to_pylist(), logps, strict=True)))


def measure(table: Path, folder: Path) -> dict[str, float]:
    """Load, check, order, read: in this process."""
    from pipeline.config import load_part
    from pipeline.lm import examples as data
    from pipeline.lm.side_tables import SideTables
    from pipeline.training import checks, loop, run

    assert loop and run, "everything a training process imports counts as its start"
    before, started, cpu = peak_memory(), time.perf_counter(), time.process_time()
    examples = data.load([columns.Source(table, DIGEST)], folder, SideTables(reference=[table.parent / "logps"]),
                         stop_ids=[2])
    loaded = time.perf_counter()
    data.check_fits(examples, 8000, 512)
    objective = load_part({"module": "pipeline.objectives.dpo"}, "objective", Objective)
    examples = checks.fit_to_objective(examples, objective, None)
    checked = time.perf_counter()
    batches = loop.global_batches(data.ids_of(examples), 0, 64, 0, 200)
    first = next(batches)
    ordered = time.perf_counter()
    tokens = sum(examples[i].completion_tokens for chosen in (first, *batches) for i in chosen)
    assert tokens == 200 * 64 * 2 * COMPLETION
    return {"groups": len(examples), "load_seconds": loaded - started, "check_seconds": checked - loaded,
            "cpu_seconds": time.process_time() - cpu,
            "order_seconds": ordered - checked, "ms_per_batch_of_64": (time.perf_counter() - ordered) * 1000 / 200,
            "memory_before_mb": before / 2**20, "memory_above_mb": (peak_memory() - before) / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="20,000 groups")
    parser.add_argument("--folder", type=Path, help="where the table is made and kept; default: a temporary one")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
            print(json.dumps(measure(options.folder / "groups", Path(scratch) / "examples")))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "groups").exists():
            make(folder / "groups", 20_000 if options.quick else options.groups)
        done = subprocess.run([sys.executable, __file__, "--measure", "--folder", str(folder)], check=True,
                              stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    for name, value in found.items():
        print(f"{name:20} {value:12,.1f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
