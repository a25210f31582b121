"""`align sweep`: words become runs, what they share is computed once, and a sweep goes on after whatever stopped it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import sweep, sweep_record
from flows.prepare import prepare
from flows.sweep_plan import sweep_plan
from flows.sweep_words import arms, sweep_name
from pipeline import runs
from pipeline.errors import UserError


def names(*words: str) -> list[str]:
    return [arm.run for arm in arms("s", list(words))]


def test_every_combination_is_a_run_named_after_what_is_its_own():
    made = arms("s", ["recipe=pco", "objective=dpo,ipo", "seed=range(0,2)"])
    assert [(arm.run, arm.words) for arm in made] == [
        (f"s-{objective}-s{seed}", ["recipe=pco", f"objective={objective}", f"seed={seed}"])
        for objective in ("dpo", "ipo") for seed in (0, 1)]
    assert names("objective.beta=0.1,0.2", "objective=dpo") == ["s-beta0.1", "s-beta0.2"]
    assert names("recipe=pco") == ["s"]


def test_names_do_not_hang_on_the_order_of_the_words_or_the_other_values():
    """So a sweep that gets another value goes on with the runs it has."""
    assert names("seed=0,1", "objective=dpo,ipo") == ["s-dpo-s0", "s-ipo-s0", "s-dpo-s1", "s-ipo-s1"]
    assert set(names("seed=0,1", "objective=dpo,ipo")) < set(names("objective=dpo,ipo,cpo", "seed=0,1,2"))


def test_the_other_forms_of_hydra_and_values_with_commas():
    assert names("objective=choice(dpo,ipo)") == ["s-dpo", "s-ipo"]
    assert names("objective=glob(*cringe)") == ["s-binary_cringe", "s-hard_cringe", "s-pairwise_cringe"]
    made = arms("s", ["sampling.temperatures=[0.7,1],[1]"])
    assert [arm.words for arm in made] == [["sampling.temperatures=[0.7,1]"], ["sampling.temperatures=[1]"]]
    assert len({arm.run for arm in made}) == 2
    assert max(map(len, names(f"data.judge.score={'x' * 70},{'y' * 70}"))) == 64


def test_a_path_with_a_comma_that_is_there_is_one_value(tmp_path: Path):
    place = tmp_path / "a,b"
    place.mkdir()
    assert len(names(f"data.root={place}")) == 1
    assert len(names(f"data.root={tmp_path}/c,{tmp_path}/d")) == 2


def test_what_is_no_list_of_values_is_told_at_once():
    with pytest.raises(UserError) as wrong:
        arms("s", ["objective.beta=interval(0,1)", "dpo"])
    assert len(wrong.value.problems) == 2
    assert "objective.beta=range(from,below,step)" in wrong.value.problems[0]
    with pytest.raises(UserError, match="sweep=NAME"):
        sweep.described(["recipe=pco", "run=x"], None, Path())
    assert sweep_name(None, ["recipe=pco"]) == "pco-minifarm"
    with pytest.raises(UserError, match="expected up to 32"):
        sweep_name("x" * 33, [])


def test_the_problems_of_all_runs_come_once_and_before_the_first_starts(tmp_path: Path):
    words = ["recipe=pco", "engine=transformers", "objective=dpo,dpoo", "iterations=0"]
    with pytest.raises(UserError) as wrong:
        sweep.checked(sweep.described(words, "s", tmp_path), tmp_path)
    assert len([p for p in wrong.value.problems if p.startswith("iterations:")]) == 1
    assert any(p.startswith("s-dpoo: objective: no objective named 'dpoo'") for p in wrong.value.problems)


@pytest.mark.parametrize("record", ["", "[]", '{"name": "s", "words": []}', '{"name": "s", "words": [], "runs": [3]}',
                                    '{"name": "s", "words": [], "runs": [{"run": "a", "words": [], "lane": 2}]}'])
def test_a_record_of_another_kind_or_version_is_told(record, tmp_path: Path):
    (tmp_path / "sweeps/s").mkdir(parents=True)
    (tmp_path / "sweeps/s/sweep.json").write_text(record)
    with pytest.raises(UserError, match="not a sweep's record; move the folder away"):
        sweep_record.load(tmp_path, "s")


def test_what_runs_share_is_counted_once(tmp_path: Path):
    """Two objectives, two seeds of training: one SFT model, four trainings."""
    words = ["recipe=pco", "engine=transformers", "objective=dpo,ipo", "seeds.train=0,1", "iterations=1"]
    made = sweep.described(words, "s", tmp_path)
    prepared = sweep.checked(made, tmp_path)
    found = sweep_plan(prepared)
    different = {line.step: (line.runs, line.different, line.cached) for line in found.lines}
    assert different["sft"] == different["baseline"] == different["pref_reference"] == (4, 1, 0)
    assert different["train[1]"] == different["evaluate[1]"] == (4, 4, 0)
    alone = sweep_plan(prepared[:1])
    assert found.cost.steps == sum(line.different for line in found.lines) < 4 * alone.cost.steps


def test_jobs_share_the_devices(monkeypatch: pytest.MonkeyPatch):
    prepared = [prepare(["recipe=sft", "engine=transformers"])]
    monkeypatch.setattr(sweep.machine, "gpus", lambda: ["0", "1", "2"])
    assert sweep.devices("2", prepared) == [["0", "2"], ["1"]]
    with pytest.raises(UserError, match="there are 3 CUDA devices, expected at most 3"):
        sweep.devices("4", prepared)
    with pytest.raises(UserError, match="jobs: expected a whole number"):
        sweep.devices("two", prepared)


@pytest.fixture
def shell(warm: dict[str, str], prefect: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """shell("sweep", ...) -> the process, in a folder of its own."""
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, **warm, **prefect}
    environment["PYTHONPATH"] = os.pathsep.join([warm["PYTHONPATH"], str(root)])

    def call(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-m", "flows.cli", *words], text=True, cwd=tmp_path, env=environment,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    return call


def test_a_sweep_goes_on_after_a_kill_and_past_an_arm_that_fails(shell, small_world, tiny_model, tmp_path):
    """Another process holds the first arm's run, so it fails and the second goes on. Killed while it does, the same
    command finishes the second; the first is told of at the end, and done once it is let go."""
    words = ["sweep", "recipe=sft", f"data.root={small_world}", "model=path", f"model.path={tiny_model}",
             "trainer=scratch", "engine=transformers", "model.max_prompt_tokens=120", "model.max_completion_tokens=100",
             "trainer.sft.epochs=1,2", "sweep=s"]
    workspace = tmp_path / "workspace"
    with runs.hold(workspace, "s-epochs1"):
        killed = shell(*words)
        deadline = time.monotonic() + 120
        while not (runs.folder(workspace, "s-epochs2") / "run.json").is_file():
            assert killed.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        killed.send_signal(signal.SIGTERM)
        said, _ = killed.communicate(timeout=60)
        assert killed.returncode == 130 and "FAILED s-epochs1" in said, said
        assert "interrupted, 2 of 2 runs are left; go on with: align sweep sweep=s" in said
        again = shell("sweep", "sweep=s")
        said, _ = again.communicate(timeout=240)
        assert again.returncode == 1
        assert re.search(r"s-epochs1 failed, exit code 2; last lines of .*run 's-epochs1' is going on in process", said,
                         re.DOTALL), said
        assert "1 of 2 runs failed" in said and "align run run=s-epochs1" in said
    record = runs.load(workspace, "s-epochs2")
    assert record is not None and record.outcome == runs.DONE, said
    last = shell("sweep", "sweep=s")
    said, _ = last.communicate(timeout=240)
    assert last.returncode == 0, said
    states = {step["name"]: step["state"] for step in runs.load(workspace, "s-epochs1").steps}
    assert (states["init"], states["tokens"], states["sft"]) == ("cached", "cached", "done")
