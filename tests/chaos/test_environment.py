"""What surrounds a run: another job's variables, a poor shell, a taken port, keys that must not be found anywhere."""

from __future__ import annotations

import itertools
import mmap
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos import canaries, small
from tests.flows.test_full_disk import _may_mount as may_mount

pytestmark = pytest.mark.slow
ANOTHER_JOB = {
    "SLURM_JOB_ID": "7", "SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_NODELIST": "n[1-4]", "RANK": "3",
    "LOCAL_RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "other",
    "CUDA_VISIBLE_DEVICES": "", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "LC_ALL": "C", "LANG": "C"}


def test_a_poor_environment_changes_no_byte_and_keys_are_nowhere(reference, forking, tidy, tmp_path):
    """Of another job, without HOME, in the C locale, umask 077, and every kind of key set: the SFT recipe ends as it
    does elsewhere, only its owner may read what it wrote, and no file and no command line has a key in it."""
    rows, undisturbed = reference
    environment = small.environment(tmp_path, tidy, forking.address, **small.NOWHERE, **ANOTHER_JOB, **canaries.KEYS,
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
    _same(workspace, undisturbed)
    assert canaries.holding(canaries.KEYS, workspace, tmp_path / "tmp") == []
    assert not any(key in text for key in canaries.KEYS.values() for text in {output, *shown})
    assert not [path for path in workspace.rglob("*") if path.stat().st_mode & 0o077 and not path.is_symlink()]


def _same(workspace: Path, undisturbed: Path) -> None:
    """The steps of the SFT recipe are those of the undisturbed run, byte for byte."""
    steps, good = small.made(workspace), small.made(undisturbed)
    shared = [name for name in steps if name in ("data", "init", "tokens", "sft")]
    assert len(shared) == 4
    assert [steps[name].digest() for name in shared] == [good[name].digest() for name in shared]


def test_a_clock_that_jumps_changes_no_byte(reference, forking, tidy, tmp_path):
    """By a day back, a year on and back to 1975 and so on, several times a second, for command, driver and supervisors;
    afterwards runs can be listed, and what is not needed be removed."""
    rows, undisturbed = reference
    library = tmp_path / "clock.so"
    subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-o", library,
                    small.ROOT / "tests/chaos/clock.c", "-ldl"], check=True)
    (tmp_path / "shift").write_bytes(bytes(8))
    shifted = {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(tmp_path / "shift")}
    environment = small.environment(tmp_path, tidy, forking.address, **small.NOWHERE, **shifted)
    argv = small.command(tmp_path / "ws", rows, "engine=transformers", recipe="sft")
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    jumps = itertools.cycle((0, -86_400, 365 * 86_400, -50 * 365 * 86_400))
    with (tmp_path / "shift").open("r+b") as file:
        shift = mmap.mmap(file.fileno(), 8)
    while process.poll() is None:
        shift[:] = struct.pack("@q", next(jumps))
        time.sleep(0.2)
    output = process.stdout.read()
    assert process.returncode == 0 and "Traceback" not in output, output
    _same(tmp_path / "ws", undisturbed)
    for words in (["status"], ["status", "small"], ["gc"]):
        done = _align(*words, f"workspace={tmp_path / 'ws'}", **shifted)
        assert done.returncode == 0 and not re.search(r"-\d+ \w+ ago", done.stdout), done.stdout + done.stderr


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
        _one_line(_align("server", "up", f"workspace={tmp_path / 'ws'}", "--port", port), port, "try another --port")


def test_a_workspace_that_may_not_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    _one_line(_align("run", "recipe=sft", f"workspace={tmp_path / 'file'}", "engine=transformers"), "file")


READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'


@pytest.mark.skipif(not may_mount(), reason="may mount no file system here")
@pytest.mark.parametrize("words", [["plan"], pytest.param(["run", "engine=transformers"], marks=pytest.mark.long)])
def test_an_installation_that_is_read_only(words, reference, tidy, tmp_path):
    """Nothing is written beside the code."""
    rows, undisturbed = reference
    code = shutil.copytree(small.ROOT, tmp_path / "code", ignore=shutil.ignore_patterns(
        ".git", "workspace", "build", "tests", "docs", "__pycache__"))
    first, *more = words
    command = small.command(tmp_path / "ws", rows, *more, recipe="sft")
    command[3] = first
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", READ_ONLY, "sh", str(code), *command]
    environment = {**small.environment(tmp_path, tidy, None, **small.NOWHERE), "PYTHONPATH": str(code)}
    done = subprocess.run(inside, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(code.rglob("__pycache__"))
    if first == "run":
        _same(tmp_path / "ws", undisturbed)


@pytest.mark.skipif(not may_mount(), reason="may be no other user here")
@pytest.mark.parametrize("words", [["plan"], pytest.param(["run", "engine=transformers"], marks=pytest.mark.long)])
def test_a_user_without_a_name_or_home(words, reference, tidy, tmp_path):
    """A uid that no list of users has, as in a container, with neither HOME nor USER, and temporary files in a folder
    that may not be written."""
    rows, undisturbed = reference
    first, *more = words
    command = small.command(tmp_path / "ws", rows, *more, recipe="sft")
    command[3] = first
    (tmp_path / "closed").mkdir(mode=0o500)
    environment = {**small.environment(tmp_path, tidy, None, **small.NOWHERE), "TMPDIR": str(tmp_path / "closed")}
    environment = {name: value for name, value in environment.items() if name not in ("HOME", "USER", "LOGNAME")}
    done = subprocess.run(["unshare", "--user", "--map-user=12345", "--map-group=12345", *command], cwd=tmp_path,
                          capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    if first == "run":
        _same(tmp_path / "ws", undisturbed)


@pytest.mark.skipif(not may_mount(), reason="may be no other user here")
def test_a_workspace_of_another_user(tmp_path):
    """One line, not a traceback: `plan` writes nothing there, `run` has to."""
    workspace = tmp_path / "theirs"
    workspace.mkdir(mode=0o755)
    os.chown(workspace, 4242, 4242)
    command = [sys.executable, "-m", "flows.cli", "run", "recipe=sft", f"workspace={workspace}", "engine=transformers"]
    done = subprocess.run(["unshare", "--user", "--map-user=12345", *command], capture_output=True, text=True,
                          cwd=tmp_path, timeout=120, env={**os.environ, "PYTHONPATH": str(small.ROOT)})
    _one_line(done, f"workspace: {workspace} cannot be written; give another workspace=FOLDER")
