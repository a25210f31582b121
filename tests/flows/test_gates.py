"""A gate ends a real run: real stages in processes of their own, no engine. And what the record says."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from flows import gates, progress, summary
from flows.driver import Driver
from pipeline import plan, runs, store

ANSWERS = {  # what the policy of each iteration "answers": the judge counts e, the loop's own reward counts x
    "base": ["e", "e x", "e", "x e"],
    "one": ["e e x x", "e e x", "e e x", "e e x x"],  # both scores rise
    "two": ["x x x x", "x x x", "x x x e", "x x x"],  # a hacked reward: x rises, e falls
    "three": ["e e e"] * 4,
}


@pytest.fixture
def world(tmp_path: Path, warm: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of answers for each iteration, and the two scorers as a package the stages' processes can import."""
    folder = tmp_path / "world"
    folder.mkdir()
    for name, texts in ANSWERS.items():
        rows = [{"id": str(i), "prompt": f"question {i}", "completion": t} for i, t in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "gate_rules.py").write_text(
        "def e(messages, text): return float(text.count('e'))\ndef x(messages, text): return float(text.count('x'))\n")
    monkeypatch.syspath_prepend(str(folder))
    for name, value in {**warm, "PYTHONPATH": f"{folder}:{warm['PYTHONPATH']}"}.items():
        monkeypatch.setenv(name, value)
    return folder


def config(world: Path, action: str, iterations: int = 3) -> dict:
    """Given answers instead of sampled ones; a policy's "model" is the folder of its data."""
    rule = {"module": "pipeline.rewards.rule"}
    names = {1: "one", 2: "two", 3: "three"}
    answers = {"module": "pipeline.formats.jsonl", "sft": "base.jsonl", "shares": {"unlabeled": 0, "eval": 0},
               "later": {i: {"sft": f"{name}.jsonl"} for i, name in names.items()}}
    recipe = {
        "once": {"base": {"stage": "import_data"}, "base_scores": {"stage": "score", "inputs": {"groups": "base/sft"}}},
        "each": {
            "train": {"stage": "import_data"},
            "scores": {"stage": "score", "inputs": {"groups": "train[i]/sft"}},
            "evaluate": {"stage": "evaluate", "inputs": {
                "groups": "train[i]/sft", "scores": "scores[i]/scores", "baseline": "base/sft",
                "baseline_scores": "base_scores/scores"}},
            "report": {"stage": "report", "inputs": {"evaluations": "evaluate[*]"}},
            "gate": {"stage": "gate", "inputs": {
                "model": "train[i]/sft", "evaluation": "evaluate[i]", "start": "base/sft", "previous": "gate[i-1]"}},
        },
    }
    stages = {
        "import_data": {"settings": {"format": answers}, "runtime": {"root": str(world)}},
        "score": {"settings": {"reward": {**rule, "function": "gate_rules.x"},
                               "also": {"gold": {**rule, "function": "gate_rules.e"}}}},
        "evaluate": {"settings": {"score": "gold"}},
        "report": {"settings": {}},
        "gate": {"settings": {"iteration": "$iteration", "action": action}},
    }
    return {
        "recipe": recipe, "iterations": iterations, "seed": 0, "stage": stages, "tracking": {"wandb": None},
        "engine": {"module": "pipeline.engines.transformers"}, "choices": {"recipe": "gated"},
        "hardware": {"grace_seconds": 5.0, "timeout_minutes": 2.0, "warm_workers": False,
                     "training": {"device": "cpu"}},
    }


def driver(workspace: Path, world: Path, action: str) -> Driver:
    settings = config(world, action)
    steps = plan.expand(settings)
    run = runs.load(workspace, "gated") or runs.Run("gated", settings, [], {}, [
        {"name": s.name, "stage": s.stage, "iteration": s.iteration, "key": None, "state": "waiting",
         "inputs": [str(r) for refs in s.inputs.values() for r in refs]} for s in steps], runs.RUNNING, 1.0)
    runs.save(workspace, run)
    return Driver(workspace, run, steps, observers=(progress.Screen([step.name for step in steps]),))


@pytest.mark.slow
def test_a_hacked_reward_stops_the_run_and_the_artifact_decides_again(tmp_path, world, capsys):
    """Iteration 1 passes; in iteration 2 the reward rises and the judge's win rate falls: nothing of 3 runs. Run again,
    the same decision comes from the store, and no step is computed."""
    workspace = tmp_path / "workspace"
    first = driver(workspace, world, "stop")
    first.walk()
    record = runs.load(workspace, "gated")
    assert record.outcome == "stopped by gate[2]"
    assert {s["name"]: s["state"] for s in record.steps if s["iteration"] == 3} == {
        f"{name}[3]": "skipped" for name in ("train", "scores", "evaluate", "report", "gate")}
    assert "gate[2]" in first.done and "train[3]" not in first.done
    decision = gates.read(first.done["gate[2]"])
    assert (decision["decision"], decision["goes_on_from"]) == ("stop", 1)
    assert first.done["gate[2]"].digest("model") == first.done["train[1]"].digest("sft")
    summary.conclude(workspace, record, first.done, 1.0)
    printed = capsys.readouterr().out
    assert "stopped by gate[2]: the win rate fell from 100.0% to 12.5% while the learned reward rose" in printed
    report = (runs.folder(workspace, "gated") / "report.md").read_text()
    assert re.search(r"## Gates\n\n\| gate .*\n.*\n\| gate\[1\] \| pass \| 1 .*\n\| gate\[2\] \| stop \| 1 ", report)
    again = driver(workspace, world, "stop")
    again.walk()
    assert again.stopped_by == "gate[2]" and runs.load(workspace, "gated").outcome == "stopped by gate[2]"
    states = {s["state"] for s in again.run.steps if s["iteration"] < 3}
    assert states == {"cached"}


def test_an_iteration_is_set_aside_and_the_run_goes_on(tmp_path, world):
    """As above, but the third iteration is compared with the first, which it beats."""
    made = driver(tmp_path / "workspace", world, "previous")
    made.walk()
    found = {i: gates.read(made.done[f"gate[{i}]"]) for i in (1, 2, 3)}
    assert [found[i]["decision"] for i in (1, 2, 3)] == ["pass", "previous", "pass"]
    assert found[3]["compared_with"] == 1 and made.stopped_by == ""
    assert made.done["gate[2]"].digest("model") == made.done["train[1]"].digest("sft")
    planned = plan.look_up_all(tmp_path / "workspace", made.steps)
    assert gates.reachable(planned) == planned


def test_a_stop_in_the_store_ends_the_plan_there(tmp_path, world):
    made = driver(tmp_path / "workspace", world, "stop")
    for step in made.steps:  # also those behind the gate, as another run may have left them
        Driver(made.workspace, made.run, made.steps, only=step.name).walk()
    planned = plan.look_up_all(tmp_path / "workspace", made.steps)
    assert [item.step.name for item in gates.reachable(planned)][-1] == "gate[2]"


def test_the_record_of_how_it_ended():
    steps = [{"name": name, "state": "done"} for name in ("a", "gate[1]", "b")]
    run = runs.Run("r", {}, [], {}, steps, runs.RUNNING, 0.0)
    assert gates.ended(run, "").outcome == "done"
    stopped = gates.ended(run, "gate[1]")
    assert stopped.outcome == "stopped by gate[1]" and stopped.steps[2]["state"] == "skipped"
    assert gates.ended(replace(run, steps=steps[:2]), "gate[1]").outcome == "done"


def test_other_artifacts_decide_nothing(tmp_path: Path):
    assert gates.read(store.Artifact("evaluate", "k", tmp_path, {})) is None
    assert gates.lines("gate[1]", {"reasons": [], "undecided": []}) == []


def test_what_a_gate_could_not_decide_is_said_of_a_pass_too():
    decision = {"decision": "pass", "reasons": [], "undecided": ["cannot decide whether answers grew: no length"]}
    assert gates.lines("gate[1]", decision) == ["  gate[1]: cannot decide whether answers grew: no length"]
