"""Files beside the user's data, and what stands on the terminal, reach no process of a run unless they are asked to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flows.cli import main
from flows.compose import compose
from pipeline import plan, runs, supervisor

ODD = "a=b [x], (1) jürgen ${y}"  # what a grammar would trip over
DRIVE = """
import sys
from pathlib import Path
from flows import command, prepare
from pipeline import plan, runs
run = runs.load(Path(sys.argv[1]), "shown")
sys.exit(command._drive(prepare.CheckedRun(run, Path(sys.argv[1]), plan.steps_of(run), []), None, False))
"""


def test_the_users_files_shadow_nothing_and_his_rule_is_found(two_steps, tmp_path, warm):
    """A folder with modules of our names and of Python's own, an answer on standard input, and the rule to score by."""
    place = tmp_path / "place"
    (place / "flows").mkdir(parents=True)
    for name in ("pipeline.py", "numbers.py", "tokenize.py", "flows/__init__.py"):
        (place / name).write_text("raise SystemExit('imported the file of the user')\n")
    (place / "rule_beside.py").write_text(
        "import sys\n\n\ndef f(messages, text):\n    return float(len(sys.stdin.read()))\n")
    workspace = two_steps(function="pipeline.rewards.rule.fresh_trigrams")
    run = runs.load(workspace, "shown")
    run.config["stage"]["score"]["settings"]["reward"]["function"] = "rule_beside.f"
    runs.save(workspace, run)
    done = subprocess.run([sys.executable, "-P", "-c", DRIVE, str(workspace)], cwd=place, input="y\ny\n", text=True,
                          capture_output=True, env={**os.environ, **warm})
    assert done.returncode == 0, done.stdout + done.stderr
    (score,) = [item for item in plan.look_up_all(workspace, _steps(workspace, place)) if item.step.name == "scores"]
    assert score.artifact.manifest["counts"]["score_mean"] == 0.0  # nothing was on the stage's standard input


KILLS = """
import os
import signal

import psutil


def f(messages, text):
    for process in psutil.Process().parents():
        if process.cmdline()[1:4] == ["-m", "flows.driver", WORKSPACE]:
            process.send_signal(signal.SIGKILL)
    return 1.0
"""


def test_a_killed_driver_says_what_happened_and_how_to_go_on(two_steps, tmp_path):
    workspace = two_steps()
    (tmp_path / "rule_that_kills.py").write_text(KILLS.replace("WORKSPACE", repr(str(workspace))))
    run = runs.load(workspace, "shown")
    run.config["stage"]["score"]["settings"]["reward"]["function"] = "rule_that_kills.f"
    runs.save(workspace, run)
    environment = {**os.environ, **supervisor.imports(), "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    done = subprocess.run([sys.executable, "-P", "-c", DRIVE, str(workspace)], cwd=tmp_path, text=True,
                          capture_output=True, env=environment)
    assert done.returncode == 1
    assert "error: the run's process was killed by SIGKILL: " in done.stderr
    assert done.stderr.strip().endswith("go on with:\n    align run run=shown")
    assert runs.load(workspace, "shown").outcome == runs.INTERRUPTED


def test_a_step_that_finds_a_setting_wrong_does_not_say_to_do_the_same_again(two_steps, tmp_path):
    """What is wrong is known in the step alone: a score that is no number."""
    workspace = two_steps()
    (tmp_path / "rule_of_nothing.py").write_text("def f(messages, text):\n    return float('nan')\n")
    run = runs.load(workspace, "shown")
    run.config["stage"]["score"]["settings"]["reward"]["function"] = "rule_of_nothing.f"
    runs.save(workspace, replace(run, overrides=["recipe=mine", "run=shown", "reward=rule"]))
    done = subprocess.run([sys.executable, "-P", "-c", DRIVE, str(workspace)], cwd=tmp_path, text=True,
                          capture_output=True, env={**os.environ, **supervisor.imports(),
                                                    "PREFECT_API_URL": "http://127.0.0.1:9/api"})
    assert done.returncode == 2
    assert "error: scores: reward: the score 'reward' of all 5 completions is not finite" in done.stderr
    assert done.stderr.endswith(
        "once a file, a server or hardware.* is put right, go on with:\n    align run run=shown\n"
        "with another setting it is another run, which takes what is done from the store; change or add it here:\n"
        "    align run recipe=mine reward=rule run=shown-2\n")


def _steps(workspace: Path, place: Path) -> list[plan.Step]:
    before = os.getcwd()
    os.chdir(place)  # where the rule is
    try:
        return plan.steps_of(runs.load(workspace, "shown"))
    finally:
        os.chdir(before)


@pytest.mark.parametrize("key", ["data.root", "model.path", "reward.path", "reward.base", "workspace"])
def test_a_path_is_taken_as_it_is_typed(key, tmp_path):
    made = compose(["recipe=pco", "model=path", f"{key}={tmp_path / ODD}"])
    assert made.problems == []
    node = made.config
    for name in key.split("."):
        node = node[name]
    assert node == str(tmp_path / ODD)


@pytest.mark.parametrize("name", ["1e5", "007", "true", "no"])
def test_a_run_may_have_a_number_for_a_name(name):
    made = compose(["recipe=pco", f"run={name}"])
    assert made.config["run"] == name and made.problems == []


def test_a_name_of_other_letters_is_told_what_names_are():
    assert compose(["recipe=pco", "run=実験"]).problems == [
        "run: '実験' is no run name, expected up to 64 letters, digits and . _ -"]


def test_a_plan_in_a_folder_of_odd_letters(tmp_path, monkeypatch, capsys):
    """Relative and absolute, data and workspace; and tables show it whole."""
    place = tmp_path / ODD
    place.mkdir()
    rows = [{"prompt": f"say {i}", "chosen": f"a longer answer {i}", "rejected": "no"} for i in range(40)]
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(place)
    words = ["recipe=sft", "data=jsonl", "data.format.shares.eval=5", "workspace=ws"]
    assert main(["plan", *words, "data.root=pairs.jsonl"]) == 0
    assert f"in {place / 'ws'}" in capsys.readouterr().out
    assert main(["plan", *words, f"data.root={place}"]) == 0
