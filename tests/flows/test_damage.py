"""A byte that flipped on the disk: found before what was made from it is committed; that artifact is made again."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from flows import inspection
from flows.driver import Driver
from flows.failures import InputDamaged
from pipeline import files, plan, runs, store
from pipeline.errors import UserError


def _walk(workspace) -> list[str]:
    """Drive the run; the state of each of its steps."""
    run = runs.load(workspace, "shown")
    Driver(workspace, run, plan.steps_of(run)).walk()
    return [step["state"] for step in runs.load(workspace, "shown").steps]


def test_a_flipped_byte_is_found_before_anything_made_from_it_is_committed(two_steps):
    workspace = two_steps()
    run = runs.load(workspace, "shown")
    Driver(workspace, run, plan.steps_of(run), only="data").walk()
    (data, _) = plan.look_up_all(workspace, plan.steps_of(run))
    (file,) = (data.artifact.path / "sft").glob("*.parquet")
    good = file.read_bytes()
    bad = bytearray(good)
    bad[len(bad) // 4] ^= 1
    file.write_bytes(bad)
    again = f"align run run=shown workspace={workspace}"
    with pytest.raises(InputDamaged, match=rf"(?s)^scores: .*{file}: content changed.*{again}$"):
        _walk(workspace)
    assert runs.load(workspace, "shown").outcome == runs.FAILED
    assert list((workspace / "artifacts" / "score").iterdir()) == [] and not data.artifact.path.exists()
    assert _walk(workspace) == ["done", "done"]
    assert file.read_bytes() == good


def test_a_flipped_byte_of_the_users_own_file_is_found(two_steps):
    """Whose hash is remembered by its size and time, which a disk that fails leaves as they were."""
    workspace = two_steps()
    run = runs.load(workspace, "shown")
    file = Path(run.config["stage"]["import_data"]["runtime"]["root"]) / "sft.jsonl"
    assert _walk(workspace) == ["done", "done"]
    shutil.rmtree(next((workspace / "artifacts/import_data").iterdir()))
    good, times = file.read_bytes(), file.stat()
    file.write_bytes(good.replace(b"o", b"u", 1))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(UserError, match=rf"^data: {file}: content changed, though .* touch {file}$"):
        _walk(workspace)
    assert not list((workspace / "artifacts/import_data").glob("[!.]*"))
    file.write_bytes(good)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert _walk(workspace) == ["done", "cached"]


def test_what_a_step_reads_is_hashed_once_and_beside_it(two_steps, monkeypatch):
    """Each file of its inputs, in a thread of its own: what it costs is these bytes, at the speed of SHA-256."""
    workspace, hashed, real = two_steps(), [], files.file_hash
    monkeypatch.setattr(store, "file_hash",
                        lambda path: (hashed.append((path, threading.current_thread())), real(path))[1])
    assert _walk(workspace) == ["done", "done"]
    (data, _) = plan.look_up_all(workspace, plan.steps_of(runs.load(workspace, "shown")))
    read = [data.artifact.path / name for name in data.artifact.manifest["files"] if name.startswith("sft/")]
    made = {thread for path, thread in hashed if data.artifact.path not in path.parents}  # at commits
    beside = [path for path, thread in hashed if data.artifact.path in path.parents and thread not in made]
    assert beside == read and read


def test_a_store_of_older_code_goes_on(two_steps, capsys):
    """Its manifests carry no hash of their own: they stay valid, keep their keys, and verify says what it checked."""
    workspace = two_steps()
    assert _walk(workspace) == ["done", "done"]
    assert inspection.verify(str(workspace), None) == 0 and "older code" not in capsys.readouterr().out
    for artifact in store.artifacts(workspace):
        old = {name: value for name, value in artifact.manifest.items() if name != store.SEAL}
        (artifact.path / store.MANIFEST).write_text(json.dumps(old))
    assert _walk(workspace) == ["cached", "cached"]
    assert inspection.verify(str(workspace), None) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("2 of them were made by older code: only their files")
