"""Several at the same store at the same time: each artifact is made once, and whole, whoever is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline import runs, store
from tests.chaos import small

pytestmark = pytest.mark.slow
HAMMER = """
import os, random, shutil, sys, time
from pathlib import Path
from pipeline import gc, store
workspace, number, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
rng, end, made, found = random.Random(number), time.monotonic() + seconds, 0, 0
FACTS = {"version": 1, "settings": {}, "inputs": {}, "counts": {}, "dropped": {}, "run": "r", "step": "s",
         "created": 0.0, "process_seconds": 0.0, "peak_memory_mb": 0.0}
while time.monotonic() < end:
    key = f"{rng.randrange(4):020d}"
    act = rng.randrange(8)
    if act == 0:
        gc.remove(workspace, gc.find_garbage(workspace))
    elif act == 1 and (artifact := store.find(workspace, "score", key)):
        try:
            (artifact.path / "a").write_bytes(b"?")  # damage of another size
        except OSError:
            pass
    else:
        try:
            with store.lock(workspace, "score", key, wait=rng.random()):
                artifact = store.find(workspace, "score", key)
                if artifact is None:
                    out = store.work_path(workspace, "score", key) / "out"
                    out.mkdir(parents=True, exist_ok=True)
                    for name in ("a", "b"):
                        (out / name).write_text(name + key * 500)
                    artifact = store.commit(workspace, "score", key, FACTS)
                    made += 1
                else:
                    found += 1
                hashes = {name: facts["hash"] for name, facts in artifact.manifest["files"].items()}
                print(key, store.tree_digest(hashes))
        except store.Busy:
            pass
print("made", made, "found", found)
"""


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.long)])
def test_eight_processes_hammer_the_store(seconds, tmp_path):
    """They make, find, damage and remove four artifacts: each has one digest for ever, and nothing is left behind."""
    processes = [subprocess.Popen([sys.executable, "-c", HAMMER, str(tmp_path), str(i), str(seconds)], text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                  env={**os.environ, "PYTHONPATH": str(small.ROOT)}) for i in range(8)]
    said = [process.communicate(timeout=seconds + 60) for process in processes]
    assert [(process.returncode, errors) for process, (_, errors) in zip(processes, said, strict=True)] == [(0, "")] * 8
    lines = [line.split() for output, _ in said for line in output.splitlines()]
    digests = {tuple(line) for line in lines if line[0] != "made"}
    assert len(digests) == 4 == len({key for key, _ in digests})
    assert sum(int(line[1]) for line in lines if line[0] == "made") > 4
    assert small.left_over(tmp_path, tmp_path / "locks", False) == []
    assert {path.name[:6] for path in (tmp_path / "artifacts/score").glob(".*")} <= {".work-"}


@pytest.fixture
def start(reference, forking, tidy, tmp_path):
    """start("name", ...) -> a small run of that name in the one workspace of the test."""
    rows, _ = reference

    def begin(name: str, *more: str) -> subprocess.Popen[str]:
        environment = small.environment(tmp_path, tidy, forking.address, **small.NOWHERE)
        argv = small.command(tmp_path / "ws", rows, "engine=transformers", f"run={name}", *more)
        return subprocess.Popen(argv, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    return begin


def _until(step: str, workspace: Path, name: str = "small") -> None:
    """Return when the run's record says that the step is being computed."""
    deadline = time.monotonic() + 120
    while True:
        run = runs.load(workspace, name) if (workspace / "runs" / name).is_dir() else None
        if run is not None and any(s["name"] == step and s["state"] == "running" for s in run.steps):
            return
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _times(workspace: Path, step: str, kind: str) -> int:
    """How often all runs together say that this happened to a step."""
    lines = (line for file in workspace.glob("runs/*/events.jsonl") for line in file.read_text().splitlines())
    return sum((event["step"], event["event"]) == (step, kind) for event in map(json.loads, lines))


def test_shared_steps_are_computed_once_though_the_first_run_is_killed(start, reference, forking, tidy, tmp_path):
    """Two runs with the same steps: the second waits for the first, whose processes are all killed in mid-SFT, takes
    its work over, and the first finds everything done. Meanwhile the same run is refused, and gc removes what it may.
    """
    workspace = tmp_path / "ws"
    first = start("small")
    _until("sft", workspace)
    same = start("small")
    second = start("other")
    refused, _ = same.communicate(timeout=60)
    assert same.returncode == 2 and "run 'small' is going on in process" in refused
    for process in small.marked(tidy):
        if "run=other" not in small.words(process) and str(workspace) + " other" not in " ".join(small.words(process)):
            with contextlib.suppress(psutil.NoSuchProcess):  # gone with the one before it
                process.send_signal(signal.SIGKILL)
    first.wait(30)
    environment = {**os.environ, "PYTHONPATH": str(small.ROOT)}
    while second.poll() is None:
        swept = subprocess.run([sys.executable, "-m", "flows.cli", "gc", "--apply", f"workspace={workspace}"],
                               env=environment, capture_output=True, text=True)
        assert swept.returncode == 0, swept.stderr
    output, _ = second.communicate()
    assert second.returncode == 0, output
    again = start("small")
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0, output
    assert small.differing(workspace, reference[1]) == []
    assert _times(workspace, "train[2]", "finished") == 1 and _times(workspace, "data", "finished") == 1
    _, left = small.until_nobody(tidy, forking, 10)
    assert left == [] and small.left_over(workspace, tmp_path / "tmp", True) == []


def test_a_store_that_was_moved_is_whole(reference, forking, tidy, tmp_path):
    """Another path, the same bytes: every step of the run is found done there."""
    import shutil

    rows, undisturbed = reference
    moved = tmp_path / "another name"
    shutil.copytree(undisturbed, moved)
    environment = small.environment(tmp_path, tidy, forking.address, **small.NOWHERE)
    done = subprocess.run(small.command(moved, rows, "engine=transformers"), env=environment, capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0 and "every step cached" in done.stdout, done.stdout + done.stderr
    assert all(not store.damage(artifact) for artifact in small.made(moved).values())
