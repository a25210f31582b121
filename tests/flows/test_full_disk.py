"""A full disk: one line, the state is right, nothing half-written stays, and the same command goes on."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows import estimate, inspection
from flows.driver import DiskFull, Driver
from pipeline import files, plan, runs, store, supervisor

MOUNTED = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
           'mount -t tmpfs -o size=2m tmpfs "$1" && cp -r "$1-start/." "$1" && exec "$2" -c "$3" "$1"', "sh"]
BY_TURNS = """
import os, sys
from pathlib import Path
from flows import driver, inspection
workspace = Path(sys.argv[1])
ballast = workspace / "ballast"
ballast.write_bytes(bytes(os.statvfs(workspace).f_bavail * os.statvfs(workspace).f_frsize - 2**18 - 2**17))
print("code", driver.main(workspace, "shown", None, False), flush=True)
print("left", [str(p) for p in workspace.rglob("*.tmp")], flush=True)
inspection.status(str(workspace), "shown")
print("gc", inspection.collect(str(workspace), True), flush=True)
ballast.unlink()
print("code", driver.main(workspace, "shown", None, False), flush=True)
"""


def _may_mount() -> bool:
    asked = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(asked, capture_output=True).returncode == 0


def _walk(workspace: Path) -> None:
    run = runs.load(workspace, "shown")
    Driver(workspace, run, plan.steps_of(run)).walk()


@pytest.mark.skipif(not _may_mount(), reason="may mount no file system here")
def test_a_disk_that_is_really_full(two_steps, tmp_path):
    """A file system of 2 MB: the rows do not fit, then room is made."""
    start = two_steps()
    rows = [{"prompt": f"question {i}", "completion": os.urandom(300).hex()} for i in range(1000)]
    (tmp_path / "world" / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    shutil.move(start, f"{mounted}-start")
    done = subprocess.run([*MOUNTED, str(mounted), sys.executable, BY_TURNS], capture_output=True, text=True,
                          env={**os.environ, **supervisor.imports(), "PREFECT_API_URL": "http://127.0.0.1:9/api"})
    assert "Traceback" not in done.stderr and "Traceback" not in done.stdout, done.stderr + done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(rf"the disk of {mounted} is full: \d+\.\d kB free; data was being written and may need "
                     r"(6\d\d\.\d) kB more, all steps still to run about \1 kB", line), line  # a thousand rows
    assert f"\nthen go on with:\n    align run run=shown workspace={mounted}\n" in done.stderr
    said = done.stdout
    assert [line for line in said.splitlines() if line.startswith("code")] == ["code 1", "code 0"]
    assert "left []" in said and "run shown: failed" in said and "gc 0" in said


NO_ENTRY = """
import sys
from pathlib import Path
from flows import inspection
workspace = Path(sys.argv[1])
try:
    for number in range(10**6):
        (workspace / str(number)).touch()
except OSError as error:
    print(error.strerror, flush=True)
sys.exit(inspection.collect(str(workspace), True))
"""


@pytest.mark.skipif(not _may_mount(), reason="may mount no file system here")
def test_gc_runs_where_not_even_a_lock_can_be_made(two_steps, tmp_path):
    """A store that was copied without its locks, on a file system without a free inode."""
    start, mounted = two_steps(), tmp_path / "mounted"
    mounted.mkdir()
    (start / "artifacts/score/.trash-key-1").mkdir(parents=True)
    (start / "artifacts/score/.trash-key-1/file").write_text("1234")
    shutil.move(start, f"{mounted}-start")
    few = [word.replace("size=2m", "size=2m,nr_inodes=200") for word in MOUNTED]
    done = subprocess.run([*few, str(mounted), sys.executable, NO_ENTRY], capture_output=True, text=True,
                          env={**os.environ, **supervisor.imports()})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(os.strerror(errno.ENOSPC)) and done.stdout.endswith("freed 4 B\n")


@pytest.mark.parametrize("place", ["manifest", "record", "event"])
def test_no_room_for_what_the_driver_writes(place, two_steps, monkeypatch):
    workspace = two_steps()
    real = files.replacing

    def full(path: Path, *rest: object, **more: object):
        if not allowed and path.name == {"manifest": "manifest.json", "record": "run.json"}.get(place):
            allowed.append(1)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, *rest, **more)

    def no_event(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    allowed: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(files, "replacing", full)
        if place == "event":
            patch.setattr(files, "append_line", no_event)
        if place == "record":  # the room kept for it suffices
            _walk(workspace)
        else:
            with pytest.raises(DiskFull, match=r"(?s)is full, or your quota of it: .* align run run=shown"):
                _walk(workspace)
            assert runs.load(workspace, "shown").outcome == runs.FAILED
    _walk(workspace)
    assert [step["state"] for step in runs.load(workspace, "shown").steps][1] in ("done", "cached")
    assert not list(workspace.rglob("*.tmp"))


@pytest.mark.parametrize("error, full", [
    (OSError(errno.ENOSPC, "x"), True), (OSError(errno.EIO, "x"), False), (ValueError("x"), False),
    (RuntimeError("I/O error: No space left on device (os error 28)"), True)])
def test_what_says_that_a_disk_is_full(error, full):
    assert files.no_room(error) == full
    try:
        raise RuntimeError("while saving") from error
    except RuntimeError as outer:
        assert files.no_room(outer) == full


def test_only_what_is_still_to_run_has_to_fit(two_steps):
    """A training step whose unfinished work lies there, and one that will be found again once its inputs are."""
    workspace = two_steps()
    _walk(workspace)
    run = runs.load(workspace, "shown")
    model = {"arch": {"hidden_size": 64, "layers": 1, "heads": 1, "kv_heads": 1, "intermediate_size": 64,
                      "vocab_size": 100, "tie_embeddings": True}}
    config = {**run.config, "model": model, "workspace": str(workspace)}
    weights = 4 * (4 * 64**2 + 3 * 64**2 + 100 * 64)
    planned = plan.look_up_all(workspace, plan.steps_of(run))
    lost = plan.Planned(planned[1].step, None, None)
    trains = plan.load_stage("sft")
    step = plan.Step("sft", "sft", 0, {}, None, None, 0)
    cost = trains.cost(None) if trains.cost else None
    assert cost is not None and cost.weights == 1
    todo = [*planned, plan.Planned(step, "k" * 20, None)]
    config["hardware"] = {"training": {"keep_checkpoints": 0}}
    assert estimate.disk_needed(config, workspace, todo, run.steps) == weights
    assert estimate.disk_needed(config, workspace, [lost], run.steps) == 0
    work = store.work_path(workspace, "sft", "k" * 20)
    work.mkdir(parents=True)
    (work / "half").write_bytes(bytes(weights - 100))
    assert estimate.disk_needed(config, workspace, todo, run.steps) == 100
    config["hardware"] = {"training": {"keep_checkpoints": 2}}  # each of the weights and both moments
    assert estimate.disk_needed(config, workspace, todo, run.steps) == 100 + 6 * weights
    (work / "checkpoint").write_bytes(bytes(100 + 3 * weights))
    assert estimate.disk_needed(config, workspace, todo, run.steps) == 3 * weights
    (work / "checkpoint").unlink()
    assert inspection.verify(str(workspace), None) == 0
