"""`align logs` and `align stop` on a run that is going on, and what Ctrl-C answers."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from flows import cli, watching
from pipeline import runs, supervisor
from pipeline.errors import UserError
from tests.flows.test_surroundings import DRIVE

SLOW = """
import time


def f(messages, text):
    print("scoring \\x1b[31mred", flush=True)
    time.sleep(60)
    return 1.0
"""


@pytest.fixture
def slow(two_steps, tmp_path) -> Path:
    """A workspace whose run "shown" scores for minutes."""
    workspace = two_steps()
    (tmp_path / "world" / "slow_rule.py").write_text(SLOW)
    run = runs.load(workspace, "shown")
    run.config["stage"]["score"]["settings"]["reward"]["function"] = "slow_rule.f"
    runs.save(workspace, run)
    return workspace


@pytest.fixture
def started(slow, tmp_path):
    """started(argv) -> its process, once its run scores."""
    begun: list[subprocess.Popen] = []

    def call(argv: list[str]) -> subprocess.Popen:
        environment = {**os.environ, **supervisor.imports(), "PREFECT_API_URL": "http://127.0.0.1:9/api"}
        environment["PYTHONPATH"] += f"{os.pathsep}{tmp_path / 'world'}"
        begun.append(subprocess.Popen(argv, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                      env=environment))
        deadline, log = time.monotonic() + 120, runs.log_path(slow, "shown", "scores")
        while not (log.exists() and "scoring" in log.read_text()):
            assert time.monotonic() < deadline and begun[0].poll() is None
            time.sleep(0.05)
        return begun[0]

    yield call
    for process in begun:
        process.terminate()


def test_stop_ends_a_run_and_says_how_to_go_on(slow, started, capsys):
    process = started([sys.executable, "-m", "flows.driver", str(slow), "shown", ""])
    words = [f"workspace={slow}", "shown"]
    assert cli.main(["logs", *words]) == 0
    said = capsys.readouterr()
    assert "scoring \\x1b[31mred" in said.out and "\x1b" not in said.out  # shown, not obeyed
    assert said.err.split() == ["---", str(runs.log_path(slow, "shown", "scores"))]
    following = subprocess.Popen([sys.executable, "-m", "flows.cli", "logs", *words, "-f"], stdout=subprocess.PIPE,
                                 text=True, env={**os.environ, **supervisor.imports()})
    assert cli.main(["stop", *words]) == 0
    assert capsys.readouterr().out == (
        f"stopping, at most 20 s\nstopped; go on with:\n    align run run=shown workspace={slow}\n")
    assert process.wait(30) == 143 and runs.load(slow, "shown").outcome == runs.INTERRUPTED
    assert "scoring" in following.communicate(timeout=60)[0] and following.returncode == 0
    assert cli.main(["stop", *words]) == 0
    assert capsys.readouterr().out == "shown is not going on, it is interrupted\n"


def test_ctrl_c_answers_at_once_and_says_what_is_kept(slow, started):
    process = started([sys.executable, "-c", DRIVE, str(slow)])
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    assert [process.stderr.readline(), process.stderr.readline()] == ["\n", "stopping, at most 20 s\n"]
    assert time.monotonic() - sent < 2
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.endswith("interrupted by Ctrl-C; every finished step, part and checkpoint is kept, go on with:\n"
                           f"    align run run=shown workspace={slow}\n")


def test_which_log_is_meant(tmp_path):
    """The running step's before the failed one's, the failed one's before the last."""
    states = {"data": "done", "sft": "failed", "train[1]": "running", "judge": "waiting"}
    steps = [{"name": name, "stage": "x", "iteration": 0, "key": None, "state": state, "inputs": []}
             for name, state in states.items()]
    run = runs.Run("a", {"choices": {}}, [], {}, steps, runs.FAILED, 0.0)
    runs.save(tmp_path, run)
    with pytest.raises(UserError, match="a: no log yet"):
        watching.logs(str(tmp_path), "a", None, False)
    (runs.folder(tmp_path, "a") / "logs").mkdir()
    for age, name in enumerate(["sft", "data", "engine"]):
        path = runs.log_path(tmp_path, "a", name)
        path.write_text(name)
        os.utime(path, (age, age))
    assert watching._telling(tmp_path, "a") == "sft"
    runs.save(tmp_path, replace(run, steps=[{**step, "state": "done"} for step in steps]))
    assert watching._telling(tmp_path, "a") == "data"
    with pytest.raises(UserError, match=r"judge: it has not run yet"):
        watching.logs(str(tmp_path), "a", "judge", False)
    with pytest.raises(UserError, match=r"trian\[1\]: the run has no such step \(did you mean train\[1\]\?\)"):
        watching.logs(str(tmp_path), "a", "trian[1]", False)
    assert watching.logs(str(tmp_path), "a", "engine", False) == 0
