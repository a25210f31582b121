"""The driver's own rules: steps from run.json alone, and observers that are told but cannot disturb."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.cli import reach_this_machine_directly
from flows.compose import CONF, compose
from flows.driver import Driver
from flows.failures import StepFailed
from flows.observer import Observer
from flows.prepare import expand, prepare
from pipeline import plan, runs
from pipeline.errors import UserError

RECIPES = sorted(p.stem for p in (CONF / "recipe").glob("*.yaml")
                 if p.stem not in ("benchmark", "mcpo"))  # they need a model, ranked lists


def _written(config: dict) -> dict:
    """What a file makes of it: keys that are numbers come back as text, tuples as lists."""
    return json.loads(json.dumps(config))


@pytest.mark.parametrize("recipe", RECIPES)
def test_run_json_gives_the_steps_that_composing_gave(recipe, tmp_path):
    composed = compose([f"recipe={recipe}", f"workspace={tmp_path}", "iterations=3"])
    run = runs.Run("r", _written(composed.config), [], {}, [], runs.RUNNING, 0.0)
    assert plan.steps_of(run) == expand(composed)


def test_a_changed_step_is_in_run_json_as_it_was_resolved(tmp_path):
    """`later` and the interpolated trainer of one step only; what the user typed is not read again."""
    words = ["recipe=pco", "run=r", f"workspace={tmp_path}"]
    runs.save(tmp_path, prepare(words).run)
    changed = prepare(words[1:], {"train[2]": ["objective.later.2.alpha=0.02", "trainer.preference.lr=0.5"]})
    runs.save(tmp_path, replace(changed.run, overrides=["no longer read"], step_overrides={"train[2]": ["nor this"]}))
    steps = {step.name: step.settings for step in plan.steps_of(runs.load(tmp_path, "r"))}
    assert [step.settings for step in changed.steps] == list(steps.values())
    assert (steps["train[2]"].objective["alpha"], steps["train[2]"].trainer.lr) == (0.02, 0.5)
    assert steps["train[1]"].objective["alpha"] == 0.005 and steps["train[1]"].trainer.lr != 0.5


def _alphas(prepared) -> list[float]:
    return [step.settings.objective["alpha"] for step in prepared.steps if step.stage == "train_preference"]


@pytest.mark.parametrize("words, alphas", [
    ([], [0.005, 0.01, 0.01]),
    (["objective.alpha=0.02"], [0.02, 0.02, 0.02]),
    (["objective.alpha=0.005"], [0.005, 0.005, 0.005]),
    (["objective.later.3.alpha=0.3"], [0.005, 0.01, 0.3]),
    (["objective.later.3.alpha=0.3", "objective.alpha=0.02"], [0.02, 0.02, 0.3]),
])
@pytest.mark.parametrize("name", ["pairwise_cringe", "hard_cringe", "binary_cringe"])
def test_what_the_user_sets_holds_in_every_iteration(name, words, alphas, tmp_path):
    """`later` of a yaml gives way to it; values typed for single iterations win over both, in any order."""
    made = prepare(["recipe=pco", f"objective={name}", "objective.labels_from=simulated", f"workspace={tmp_path}",
                    "iterations=3", *words])
    assert _alphas(made) == alphas
    told = [note for note in made.notes if note.startswith("objective.alpha: train gets ")]
    assert len(told) == (len(set(alphas)) > 1)
    first = {a: alphas.index(a) + 1 for a in alphas}
    assert all(f"{a!r} from iteration {i}" in note for note in told for a, i in first.items())


def test_a_plain_setting_of_one_step_takes_effect(tmp_path):
    """Also where the run itself was started with a value for that iteration."""
    words = ["recipe=pco", "run=r", f"workspace={tmp_path}", "objective.later.2.alpha=0.03"]
    runs.save(tmp_path, prepare(words).run)
    changed = prepare(words[1:3], {"train[2]": ["objective.alpha=0.02"]})
    assert _alphas(changed) == [0.005, 0.02]
    assert "objective.alpha: train gets 0.005 from iteration 1, 0.02 from iteration 2" in changed.notes


@pytest.fixture
def old_run(tmp_path) -> Path:
    """A workspace with a run.json as commit ebeb688 wrote it, cut to the stages it uses; its engine's module has moved
    since, as the defaults have."""
    (tmp_path / "world").mkdir()
    rows = [{"prompt": f"question {i}", "chosen": f"one two three {i}", "rejected": "no"} for i in range(8)]
    (tmp_path / "world" / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = (Path(__file__).parent / "run_of_ebeb688.json").read_text()
    folder = runs.folder(tmp_path / "workspace", "old")
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(
        text.replace("WORKSPACE", str(tmp_path / "workspace")).replace("WORLD", str(tmp_path / "world")))
    return tmp_path / "workspace"


def test_a_run_json_of_older_code_goes_on_with_its_own_settings(old_run):
    run = runs.load(old_run, "old")
    assert run.config["engine"]["module"] == "pipeline.engines.transformers"
    steps = plan.steps_of(run)
    assert [step.name for step in steps] == ["data", "init", "tokens", "sft"]
    assert steps[3].settings.trainer.lr == 0.002
    again = prepare(["run=old", f"workspace={old_run}"])
    assert again.steps == steps
    with pytest.raises(UserError, match=r"(?s)in use with other settings.*old ones:\n    align run run=old"):
        prepare(["run=old", f"workspace={old_run}", "trainer.sft.lr=0.003"])
    done = subprocess.run([sys.executable, "-m", "flows.driver", str(old_run), "old", "data"], capture_output=True,
                          text=True, env={**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert plan.look_up_all(old_run, steps)[0].cached


def test_what_older_code_did_not_record_is_said_in_one_line(old_run):
    run = runs.load(old_run, "old")
    with pytest.raises(UserError, match="lacks recipe, seed; write it anew"):
        plan.steps_of(replace(run, config={k: v for k, v in run.config.items() if k not in ("recipe", "seed")}))
    with pytest.raises(UserError) as caught:
        plan.steps_of(replace(run, step_overrides={"sft": ["trainer.sft.lr=1e-3"]}))
    assert caught.value.problems == [
        "run: run.json of 'old' was written by an older version and lacks the settings of sft; write it anew and go on "
        f"with:\n    align run run=old workspace={old_run}"]


class _Listener(Observer):
    def __init__(self, fails_at: str = "") -> None:
        self.heard: list[str] = []
        self._fails_at = fails_at

    def _hear(self, what: str) -> None:
        self.heard.append(what)
        if what == self._fails_at:
            raise RuntimeError("no more ink")

    def started(self, step):
        self._hear(f"started {step.name}")

    def finished(self, step, artifact, cached, seconds):
        self._hear(f"finished {step} {artifact.manifest['counts'].get('sft', '')} {cached} {seconds > 0}")

    def ended(self, outcome):
        self._hear(f"ended {outcome}")


def test_observers_hear_all_of_it_and_one_that_fails_is_left_out_in_one_line(two_steps, capsys):
    workspace = two_steps()
    run = runs.load(workspace, "shown")
    good, bad = _Listener(), _Listener(fails_at="started scores")
    Driver(workspace, run, plan.steps_of(run), observers=(bad, good)).walk()
    assert good.heard == ["started data", "finished data 5 False True", "started scores", "finished scores  False True",
                          "ended done"]
    assert bad.heard == good.heard[:3]
    assert capsys.readouterr().out.splitlines() == [
        "note: _Listener failed and is left out (RuntimeError('no more ink')); the run goes on"]
    again = _Listener()
    Driver(workspace, run, plan.steps_of(run), observers=(again,)).walk()
    assert again.heard[1] == "finished data 5 True True" and again.heard[-1] == "ended done"


def test_observers_hear_of_a_failure(two_steps, tmp_path, monkeypatch):
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "sour.py").write_text("def score(messages, text):\n    raise ValueError('sour')\n")
    monkeypatch.syspath_prepend(tmp_path / "world")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'world'}:{Path(__file__).parents[2]}")
    workspace = two_steps("sour.score")
    run, listener = runs.load(workspace, "shown"), _Listener()
    with pytest.raises(Exception, match="sour"):
        Driver(workspace, run, plan.steps_of(run), observers=(listener,)).walk()
    assert listener.heard[-2:] == ["started scores", "ended failed"]
    assert {s["name"]: s["state"] for s in runs.load(workspace, "shown").steps} == {"data": "done", "scores": "failed"}


@pytest.mark.parametrize(("given", "small", "expected"), [
    ("", "", "127.0.0.1,localhost"), ("intern, localhost", "", "intern,localhost,127.0.0.1"), ("*", "", "*"),
    ("intern", "other", "other,intern,127.0.0.1,localhost"), ("intern", "*", "*")])
def test_this_machine_is_asked_without_a_proxy(given, small, expected, monkeypatch):
    """Programs read one of the two spellings, and none of the user's hosts gets lost."""
    monkeypatch.setenv("NO_PROXY", given)
    monkeypatch.setenv("no_proxy", small)
    reach_this_machine_directly()
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == expected


@pytest.mark.parametrize("lost", [True, False])
def test_a_step_that_lost_its_engine_is_tried_once_more(lost, two_steps, monkeypatch):
    """Where the engine still serves, the step's own end counts; a second loss does, too."""
    workspace, told = two_steps(), list[str]()
    run = runs.load(workspace, "shown")
    steps = plan.steps_of(run)
    walking = Driver(workspace, run, steps)
    walking.engine = SimpleNamespace(environment=lambda step, rests: {}, lost=lambda step: lost,
                                     close=lambda well: None, warm_up=lambda remaining, done: None,
                                     give_up=lambda: None)

    def fails(place, item, *more):
        told.append(item.step.name)
        raise StepFailed(item.step.name, 1, ["the vLLM server is lost"])

    monkeypatch.setattr("flows.driver.ensure", fails)
    with pytest.raises(StepFailed, match="the vLLM server is lost"):
        walking.walk()
    assert told == [steps[0].name] * (2 if lost else 1)
