"""Whoever asks a run to stop, and when: it ends within 30 s, says how to go on, and keeps what it has."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import subprocess
import termios
import time
from pathlib import Path

import pytest

from pipeline import runs
from tests.chaos import small

pytestmark = pytest.mark.slow
LONG = ("trainer.sft.epochs=100", "hardware.training.checkpoint_every_steps=1000")  # 800 steps, half a minute
PROMPT = 30.0  # seconds


@pytest.fixture
def start(reference, forking, tidy, tmp_path):
    """start(...) -> a small run whose SFT takes long, as Popen with these options."""
    rows, _ = reference

    def begin(*more: str, **options: object) -> subprocess.Popen[str]:
        environment = small.environment(tmp_path, tidy, forking.address, **small.NOWHERE)
        argv = small.command(tmp_path / "ws", rows, "engine=transformers", *LONG, *more, recipe="sft")
        return subprocess.Popen(argv, env=environment, text=True, **{
            "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options})

    return begin


def _training(workspace: Path) -> None:
    """Return once the SFT has made some steps."""
    deadline = time.monotonic() + 120
    while True:
        done = runs.progress(workspace, "small", "sft") if (workspace / "runs/small").is_dir() else None
        if done is not None and done["done"] > 3:
            return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _stopped(workspace: Path, tidy: str, forking: small.Warm) -> str:
    """Nobody is left, nothing is held, the run is "interrupted"; the newest checkpoint's name."""
    _, left = small.until_nobody(tidy, forking, 5)
    assert left == [] and small.left_over(workspace, workspace, False) == []
    run = runs.load(workspace, "small")
    assert runs.outcome(workspace, run) == runs.INTERRUPTED
    (work,) = (workspace / "artifacts/sft").glob(".work-*")
    return max((path.name for path in work.rglob("step-*")), default="none")


@pytest.mark.parametrize(("signals", "code"), [
    ([signal.SIGINT], 130), ([signal.SIGINT, signal.SIGINT], 130), ([signal.SIGTERM], 143), ([signal.SIGHUP], 143)],
    ids=["Ctrl-C", "Ctrl-C twice", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_run_with_a_checkpoint(signals, code, start, forking, tidy, tmp_path):
    process = start()
    _training(tmp_path / "ws")
    for number in signals:
        process.send_signal(number)
        time.sleep(0.2)
    output, _ = process.communicate(timeout=PROMPT)
    assert process.returncode == code, output
    assert re.search(r"interrupted by .* go on\s+with:\n    align run run=small", output, re.DOTALL), output
    assert "Traceback" not in output
    assert re.fullmatch(r"step-\d{8}", _stopped(tmp_path / "ws", tidy, forking))


def test_it_goes_on_from_the_step_it_was_stopped_at(start, forking, tidy, tmp_path):
    """The progress of the second try begins at the checkpoint of the first."""
    process = start()
    _training(tmp_path / "ws")
    process.terminate()
    process.communicate(timeout=PROMPT)
    step = int(_stopped(tmp_path / "ws", tidy, forking).removeprefix("step-"))
    process = start()
    deadline, state = time.monotonic() + 60, None
    while state is None or state["began"]["done"] != step:
        assert time.monotonic() < deadline, state
        time.sleep(0.1)
        state = runs.progress(tmp_path / "ws", "small", "sft")
    process.terminate()
    process.communicate(timeout=PROMPT)


@pytest.mark.parametrize("after", [0.15, 0.6, 1.2])
def test_stopped_while_it_starts(after, start, forking, tidy, tmp_path):
    """Whatever it is doing then: no process is left, and the same command runs."""
    process = start()
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=PROMPT)
    assert process.returncode in (130, -signal.SIGINT), output
    _, left = small.until_nobody(tidy, forking, 10)
    assert left == []
    assert "Traceback" not in output or "in main" not in output, output  # the interpreter's own start is not ours


def test_a_terminal_that_is_closed_ends_the_run(start, forking, tidy, tmp_path):
    """A pseudo-terminal that goes away: SIGHUP, and from then on every write to it fails."""
    master, slave = pty.openpty()
    process = start(stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                    preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    os.close(slave)
    _training(tmp_path / "ws")
    os.close(master)
    assert process.wait(PROMPT) == 143
    assert _stopped(tmp_path / "ws", tidy, forking) != "none"
