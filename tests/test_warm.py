"""The warm processes of the tests are what they stand for: arguments, files, codes, signals, and no orphan."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline import supervisor, tables
from pipeline.records import Completion, Group, Message

RULE = """
import os, sys, time
print(os.getpid(), os.getcwd(), os.getsid(0) == os.getpid(), "transformers" in sys.modules, flush=True)
def f(messages, text):
    time.sleep(float(os.environ["SECONDS"]))
    return 1.0
"""


@pytest.fixture
def start(warm: dict[str, str], tmp_path: Path):
    """start(seconds, **spec) -> a worker that scores one answer by a rule of this file, which takes so long."""
    (tmp_path / "rule_of_a_test.py").write_text(RULE)
    tables.write(tmp_path / "groups", [Group("g", (Message("user", "a"),), (Completion("b"),))])
    rule = {"module": "pipeline.rewards.rule", "function": "rule_of_a_test.f"}

    def begin(seconds: float = 0.0, **changed: object) -> subprocess.Popen:
        spec = {"stage": "score", "step": "x", "run": "r", "settings": {"reward": rule}, "runtime": {},
                "inputs": {"groups": [str(tmp_path / "groups")]}, "digests": {"groups": ["d"]}, "seed": 0,
                "work": str(tmp_path / "work"), "metrics": str(tmp_path / "metrics.jsonl"),
                "progress": str(tmp_path / "progress.json"), **changed}
        (tmp_path / "step.json").write_text(json.dumps(spec))
        environment = {**os.environ, **warm, "PYTHONPATH": f"{tmp_path}:{warm['PYTHONPATH']}", "SECONDS": f"{seconds}"}
        return subprocess.Popen([sys.executable, "-m", "pipeline.worker", "step.json"], cwd=tmp_path, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)

    begin.environment = {**warm, "PYTHONPATH": f"{tmp_path}:{warm['PYTHONPATH']}"}
    return begin


def test_it_is_a_stages_process_with_transformers_imported(start, tmp_path):
    said, _ = (process := start()).communicate(timeout=60)
    pid, folder, leads_a_session, has_transformers = said.split()
    assert process.returncode == 0 and int(pid) != process.pid
    assert (folder, leads_a_session, has_transformers) == (str(tmp_path), "True", "True")
    assert json.loads((tmp_path / "work" / "result.json").read_text())["counts"]["completions"] == 1


def test_it_fails_as_a_stages_process_does(start):
    _, said = (process := start(stage="no_such_stage")).communicate(timeout=60)
    assert process.returncode == 1 and "no module 'pipeline.stages.no_such_stage'" in said.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_both(start, number):
    process = start(600)
    fork = psutil.Process(int(process.stdout.readline().split()[0]))
    process.send_signal(number)
    assert process.wait(30) == -number
    psutil.wait_procs([fork], timeout=30)
    assert not fork.is_running() or fork.status() == psutil.STATUS_ZOMBIE


def test_killed_itself_its_place_ends_by_the_same_signal(start):
    process = start(600)
    os.kill(int(process.stdout.readline().split()[0]), signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL


def test_a_supervisor_of_it_stays_one(start, tmp_path):
    """Its command line holds the worker's: what the stage prints is in the log that the supervisor was told of."""
    worker = start(600)
    worker.kill()
    worker.wait()
    log = tmp_path / "stage.log"
    command = supervisor.command_line(worker.args, log=log, grace=5)
    environment = {**os.environ, **start.environment, "SECONDS": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"") and len(log.read_text().split()) == 4
