"""What surrounds a run: another job's variables, a poor shell, a taken port, keys that must not be found anywhere."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos import small
from tests.flows.test_full_disk import _may_mount as may_mount

pytestmark = pytest.mark.slow
KEYS = ("WANDB_API_KEY", "HF_TOKEN", "ALIGNLOOP_ENGINE_KEY", "OPENAI_API_KEY", "PREFECT_API_KEY")
CANARIES = {name: f"canary-{name.lower().replace('_', '-')}-7f3a9c51d2e8b604f3a9c51d" for name in KEYS}
ANOTHER_JOB = {
    "SLURM_JOB_ID": "7", "SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_NODELIST": "n[1-4]", "RANK": "3",
    "LOCAL_RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "other",
    "CUDA_VISIBLE_DEVICES": "", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "LC_ALL": "C", "LANG": "C"}
FOUND = "the key is in "


def holding(canaries: dict[str, str], *folders: Path) -> list[str]:
    """Every file below the folders that has one of the keys in it."""
    found = []
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        found += [f"{name}: {FOUND}{path}" for name, key in canaries.items() if key.encode() in content]
    return found


def test_a_poor_environment_changes_no_byte_and_keys_are_nowhere(reference, forking, tidy, tmp_path):
    """Of another job, without HOME, in the C locale, umask 077, and every kind of key set: the SFT recipe ends as it
    does elsewhere, only its owner may read what it wrote, and no file and no command line has a key in it."""
    rows, undisturbed, _ = reference
    environment = small.environment(tmp_path, tidy, forking.address, **small.NOWHERE, **ANOTHER_JOB, **CANARIES,
                                    WANDB_MODE="offline")
    del environment["HOME"]
    workspace = tmp_path / "ws"
    argv = small.command(workspace, rows, "engine=transformers", "tracking=wandb", recipe="sft")
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               umask=0o077)
    shown: set[str] = set()
    while process.poll() is None:
        shown |= {" ".join(small.words(p)) for p in small.marked(tidy)}
    output = process.stdout.read()
    assert process.returncode == 0, output
    steps, good = small.made(workspace), small.made(undisturbed)
    shared = [name for name in steps if name in ("data", "init", "tokens", "sft")]
    assert len(shared) == 4
    assert [steps[name].digest() for name in shared] == [good[name].digest() for name in shared]
    assert holding(CANARIES, workspace, tmp_path / "tmp") == []
    assert not any(key in text for key in CANARIES.values() for text in {output, *shown})
    assert not [path for path in workspace.rglob("*") if path.stat().st_mode & 0o077 and not path.is_symlink()]


def test_the_search_for_keys_finds_one(tmp_path):
    (tmp_path / "database").write_bytes(b"\0\1" + CANARIES["HF_TOKEN"].encode() + b"\0")
    assert holding(CANARIES, tmp_path) == [f"HF_TOKEN: {FOUND}{tmp_path / 'database'}"]


def _align(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "flows.cli", *words], text=True, capture_output=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(small.ROOT), **environment})


def _one_line(done: subprocess.CompletedProcess[str], *said: str) -> None:
    """Refused, in one line that says this."""
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr + done.stdout, done.stderr + done.stdout
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert all(word in line for word in said), line


@pytest.mark.parametrize("where", ["gone", "read-only"])
def test_temporary_files_elsewhere(where, tmp_path):
    """A TMPDIR that is not there, or may not be written: planning needs none."""
    folder = tmp_path / where
    if where == "read-only":
        folder.mkdir(mode=0o500)
    done = _align("plan", "recipe=sft", f"workspace={tmp_path / 'ws'}", TMPDIR=str(folder))
    assert done.returncode == 0, done.stderr


def test_a_port_that_is_taken(tmp_path):
    (tmp_path / "ws/runs").mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        _one_line(_align("dashboard", f"workspace={tmp_path / 'ws'}", "--port", port), port)


def test_a_workspace_that_may_not_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    _one_line(_align("run", "recipe=sft", f"workspace={tmp_path / 'file'}", "engine=transformers"), "file")


READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'


@pytest.mark.skipif(not may_mount(), reason="may mount no file system here")
def test_an_installation_that_is_read_only(tmp_path):
    """Nothing is written beside the code."""
    code = shutil.copytree(small.ROOT, tmp_path / "code", ignore=shutil.ignore_patterns(
        ".git", "workspace", "build", "tests", "docs", "__pycache__"))
    command = [sys.executable, "-m", "flows.cli", "plan", "recipe=sft", f"workspace={tmp_path / 'ws'}"]
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", READ_ONLY, "sh", str(code), *command]
    done = subprocess.run(inside, cwd=tmp_path, capture_output=True, text=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(code)})
    assert done.returncode == 0, done.stderr
    assert not list(code.rglob("__pycache__"))
