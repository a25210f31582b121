"""Steps as forks of a warm process: as those that start anew, in what they print, how they end and what they leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.driver import Driver
from flows.warm import Forked, Gone, Warm
from pipeline import plan, runs, tables
from pipeline import warm as parent
from pipeline.records import Completion, Group, Message

RULE = """
import os, sys, time

def f(messages, text):
    print(os.getpid(), os.getppid(), os.getsid(0) == os.getpid(), len(sys.stdin.read()), os.environ["OF_THE_STEP"],
          flush=True)
    time.sleep(float(os.environ["SECONDS"]))
    return 1.0
"""


@pytest.fixture
def warmed(warm: dict[str, str], tmp_path: Path):
    """A Warm that is ready."""
    (tmp_path / "rule_of_a_test.py").write_text(RULE)
    made = Warm(tmp_path / "warm.log")
    made.start(["score"], {**os.environ, **warm, "PYTHONPATH": f"{tmp_path}:{warm['PYTHONPATH']}"})
    deadline = time.monotonic() + 60
    while not made.ready():
        assert time.monotonic() < deadline and not made.why_cold, made.log.read_text()
        time.sleep(0.01)
    yield made
    made.close()


@pytest.fixture
def fork(warmed: Warm, tmp_path: Path):
    """fork(seconds, timeout=0, **spec) -> a step that scores one answer by a rule of this file, which takes so long."""
    tables.write(tmp_path / "groups", [Group("g", (Message("user", "a"),), (Completion("b"),))])
    rule = {"module": "pipeline.rewards.rule", "function": "rule_of_a_test.f"}

    def begin(seconds: float = 0.0, timeout: float = 0.0, **changed: object):
        spec = {"stage": "score", "step": "x", "run": "r", "settings": {"reward": rule}, "runtime": {},
                "inputs": {"groups": [str(tmp_path / "groups")]}, "digests": {"groups": ["d"]}, "seed": 0,
                "work": str(tmp_path / "work"), "metrics": str(tmp_path / "metrics.jsonl"),
                "progress": str(tmp_path / "progress.json"), **changed}
        (tmp_path / "step.json").write_text(json.dumps(spec))
        environment = {**os.environ, "SECONDS": f"{seconds}", "OF_THE_STEP": "yes"}
        return warmed.fork(tmp_path / "step.json", tmp_path / "step.log", 5.0, timeout, environment)

    return begin


def ended(step) -> int:
    while (code := step.poll(30)) is None:
        pass
    return code


def said(folder: Path) -> list[str]:
    """What the rule printed, once it has."""
    deadline = time.monotonic() + 60
    while not (words := (folder / "step.log").read_text().split() if (folder / "step.log").exists() else []):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return words


def test_a_fork_is_a_step(fork, tmp_path):
    """A supervisor of its own, a session of its own, nothing on standard input, the step's environment."""
    step = fork(1.0)
    worker, supervisor, leads, typed, given = said(tmp_path)
    assert (leads, typed, given) == ("True", "0", "yes")
    commands = [" ".join(psutil.Process(int(pid)).cmdline()).split() for pid in (worker, supervisor)]
    assert [words[1:4] for words in commands] == [["-P", "-m", "pipeline.worker"], ["-P", "-m", "pipeline.supervisor"]]
    assert ended(step) == 0
    assert json.loads((tmp_path / "work" / "result.json").read_text())["counts"]["completions"] == 1
    (tmp_path / "step.log").unlink()
    assert ended(fork(work=f"{tmp_path / 'other'}")) == 0 and said(tmp_path)[0] != worker  # one after the other


def test_it_ends_as_a_step_does(fork, tmp_path):
    assert ended(fork(stage="no_such_stage")) == 1
    assert "no module 'pipeline.stages.no_such_stage'" in (tmp_path / "step.log").read_text().splitlines()[-1]
    no_rule = {"reward": {"module": "pipeline.rewards.rule", "function": "rule_of_a_test.g"}}
    assert ended(fork(settings=no_rule)) == 2 and (tmp_path / "work" / "problems.json").exists()
    assert ended(fork(600, timeout=2)) == 124


def test_stopped_it_takes_its_worker_along(fork, tmp_path):
    step = fork(600)
    pids = [int(pid) for pid in said(tmp_path)[:2]]
    step.stop()
    assert step.poll(0) == 143 and not any(map(alive, pids))


@pytest.mark.parametrize("whose", [0, 1])
def test_killed_it_is_told(fork, tmp_path, whose):
    step = fork(600)
    pids = [int(pid) for pid in said(tmp_path)[:2]]
    os.kill(pids[whose], signal.SIGKILL)
    assert ended(step) == 137
    psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=30)
    assert not any(map(alive, pids))


def test_a_warm_process_that_dies_takes_its_step_along_and_is_not_asked_again(fork, warmed, tmp_path):
    step = fork(600)
    pids = [int(pid) for pid in said(tmp_path)[:2]]
    psutil.Process(pids[1]).parent().kill()
    with pytest.raises(Gone, match=r"ended with exit code -9, see .*warm.log"):
        ended(step)
    assert not any(map(alive, pids)) and not warmed.ready()


def test_one_that_died_between_two_steps_is_told_at_the_next_and_closed_in_silence(fork, warmed):
    """What it was asked could not be written; nor can it at the end, which is no fault of the run's."""
    warmed._process.kill()
    warmed._process.wait()
    with pytest.raises(Gone, match="ended with exit code -9"):
        fork()
    warmed.close()
    assert not warmed.ready()


def test_a_system_that_does_not_fork_is_told(monkeypatch):
    told = []
    monkeypatch.setattr(parent, "_tell", lambda **what: told.append(what))
    monkeypatch.setattr(os, "fork", lambda: (_ for _ in ()).throw(OSError(12, "Cannot allocate memory")))
    assert parent._forked({}) is None
    assert told == [{"refused": "the system does not fork: Cannot allocate memory"}]


KILLS_ITS_PARENT = """
import os, pathlib, signal
import psutil

def f(messages, text):
    done = pathlib.Path(os.environ["KILLED"])
    if not done.exists():
        (parent,) = [p for p in psutil.Process().parents() if " -m pipeline.warm " in " ".join(p.cmdline())]
        done.write_text(f"{parent.pid}")
        parent.kill()
        signal.pause()
    return 1.0
"""


def test_a_run_whose_warm_process_dies_goes_on_cold(two_steps, tmp_path, monkeypatch):
    """The step starts anew at once, and its log says why."""
    workspace, world = two_steps(), tmp_path / "world"
    (world / "rule_that_kills.py").write_text(KILLS_ITS_PARENT)
    monkeypatch.setenv("PYTHONPATH", f"{world}:{Path(__file__).parents[2]}")
    monkeypatch.syspath_prepend(world)
    monkeypatch.setenv("KILLED", f"{tmp_path / 'killed'}")
    run = runs.load(workspace, "shown")
    run.config["stage"]["score"]["settings"]["reward"]["function"] = "rule_that_kills.f"
    runs.save(workspace, run)
    driver = Driver(workspace, run, plan.steps_of(run))
    driver.launch.warm.start(["score"], dict(os.environ))
    while not driver.launch.warm.ready():
        time.sleep(0.05)
    driver.walk()
    assert (tmp_path / "killed").exists() and driver.run.outcome == runs.DONE
    log = runs.log_path(workspace, "shown", "scores").read_text()
    assert "scores starts anew, cold: the warm process ended with exit code -9" in log


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_step_that_has_ended_before_it_is_looked_at(warmed, fork):
    """Its supervisor is gone when the driver asks the system for it; how it ended is known all the same."""
    step = fork()
    while step.poll(0.1) is None:
        pass
    warmed._codes[step._pid] = 0  # as it is told once
    late = Forked(warmed, step._pid)
    late.stop()  # there is nothing to stop
    assert late._process is None and late.poll(0.1) == 0


def test_what_rows_need_is_imported_before_the_fork():
    """pyarrow imports pandas, half a second, for the first rows it is given: a fork finds it there."""
    script = """if True:
        import importlib, sys
        from pipeline import warm
        for name in warm.LATER: importlib.import_module(name)
        import pyarrow
        before = set(sys.modules)
        pyarrow.Table.from_pylist([{"a": [1]}]).to_pylist()
        print(sorted(name for name in set(sys.modules) - before if not name.startswith("pyarrow")))"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
