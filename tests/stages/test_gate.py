"""The gate stage: what it decides, which model it hands on, what the next gate compares with."""

import json
from pathlib import Path

import pytest

from pipeline.config import build, problems_of
from pipeline.stage import Context, Reporter
from pipeline.stages import gate
from pipeline.stages.gate import Settings


def evaluation(folder: Path, win_rate: float, reward: float, tokens: float, judge: str = "gold") -> Path:
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps({
        "score": judge, "policy": {"tokens": tokens}, "baseline": {"tokens": 10.0},
        "scores": {"gold": {"win_rate": win_rate, "mean": win_rate, "baseline_mean": 0.5},
                   "reward": {"win_rate": 0.5, "mean": reward, "baseline_mean": 0.0}},
    }))
    return folder


def model(folder: Path, weights: str) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_text(weights)
    (folder / "sub" / "more.json").write_text("{}")
    return folder


def decide(
    folder: Path, iteration: int, of: tuple[float | str | None, ...], previous: Path | None = None, **settings: object
) -> tuple[dict, Path]:
    """Run the gate on (win rate, learned reward, tokens[, judge]); the trained model's weights are "train<i>"."""
    inputs = {
        "model": (model(folder / "train", f"train{iteration}"),),
        "evaluation": (evaluation(folder / "evaluate", *of),),
        "start": (model(folder / "sft", "sft"),),
        **({"previous": (previous,)} if previous else {}),
    }
    made = build(Settings, {"iteration": iteration, **settings})
    context = Context(made, gate.STAGE.runtime(), inputs, {}, folder / "work", seed=0, report=Reporter())
    gate.run(context)
    return json.loads((context.out / "gate.json").read_text()), context.out


def weights(out: Path) -> str:
    return (out / "model" / "model.safetensors").read_text()


def test_a_good_iteration_passes_with_its_own_model(tmp_path: Path):
    found, out = decide(tmp_path, 1, (0.6, 1.0, 12.0))
    assert (found["decision"], found["reasons"], found["goes_on_from"], found["compared_with"]) == ("pass", [], 1, 0)
    assert weights(out) == "train1"
    linked = (out / "model" / "sub" / "more.json").stat()
    assert linked.st_nlink == 2  # costs no disk


def test_a_hacked_reward_stops_the_first_iteration_at_the_model_it_began_with(tmp_path: Path):
    """Against the baseline itself (win rate 0.5, reward 0): 0.4 is a fall, reward 1 a rise."""
    found, out = decide(tmp_path, 1, (0.4, 1.0, 10.0))
    assert (found["decision"], found["goes_on_from"]) == ("stop", 0)
    assert "fell from 50.0% to 40.0% while the learned reward rose from 0.000 to 1.000" in found["reasons"][0]
    assert weights(out) == "sft"
    assert json.loads((out / "accepted.json").read_text()) is None


def test_going_on_from_the_last_one_that_passed(tmp_path: Path):
    """1 passes with 0.6; 2 falls to 0.55 with more reward: set aside; 3 has 0.58 and is still below 1, the one that
    passed: set aside too; 4 has 0.7."""
    action = {"action": "previous"}
    _, one = decide(tmp_path / "1", 1, (0.6, 1.0, 10.0), **action)
    second, two = decide(tmp_path / "2", 2, (0.55, 2.0, 10.0), one, **action)
    third, three = decide(tmp_path / "3", 3, (0.58, 3.0, 10.0), two, **action)
    fourth, four = decide(tmp_path / "4", 4, (0.7, 4.0, 10.0), three, **action)
    assert [f["decision"] for f in (second, third, fourth)] == ["previous", "previous", "pass"]
    assert [f["goes_on_from"] for f in (second, third, fourth)] == [1, 1, 4]
    assert [weights(out) for out in (two, three, four)] == ["train1", "train1", "train4"]
    assert third["before"]["win_rate"] == 0.6 and third["compared_with"] == 1


def test_length_is_a_rule_of_its_own_and_rules_can_be_off(tmp_path: Path):
    found, _ = decide(tmp_path / "1", 1, (0.9, 1.0, 16.0), length_growth=0.5)
    assert found["reasons"] == ["answers grew from 10.0 to 16.0 tokens, more than 50%"]
    found, _ = decide(tmp_path / "2", 1, (0.1, 9.0, 99.0), length_growth=None, win_rate_fall=None)
    assert found["decision"] == "pass"


def test_a_missing_score_passes_loudly(tmp_path: Path, capsys: pytest.CaptureFixture):
    """The win rate falls to 0.1; the learned reward has no mean, is not there, or is the judge itself."""
    for name, of, said in (("null", (0.1, None, 10.0), "no finite learned reward 'reward' of this iteration"),
                           ("same", (0.1, 9.0, 10.0, "reward"), "the judge is the learned reward itself")):
        found, out = decide(tmp_path / name, 1, of)
        assert (found["decision"], found["reasons"]) == ("pass", []) and weights(out) == "train1"
        assert found["undecided"] == [
            f"cannot decide whether the win rate fell while the learned reward rose: {said}"]
        assert said in capsys.readouterr().out
    found, _ = decide(tmp_path / "other", 1, (0.1, 9.0, 10.0), learned="proxy")
    assert "no finite learned reward 'proxy' of this iteration, " in found["undecided"][0]
    found, _ = decide(tmp_path / "off", 1, (0.1, None, 10.0), win_rate_fall=None)
    assert found["undecided"] == []


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path):
    (_, a), (_, b) = (decide(tmp_path / n, 1, (0.4, 1.0, 10.0)) for n in "ab")
    assert (a / "gate.json").read_bytes() == (b / "gate.json").read_bytes()


def test_a_moving_baseline_is_refused():
    (problem,) = problems_of(Settings, {"iteration": 1, "fixed_baseline": False}, "stage.gate.settings")
    assert problem.startswith("stage.gate.settings.fixed_baseline: false, but a gate compares")


def test_links_fall_back_to_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    gate.link_tree(model(tmp_path / "a", "w"), tmp_path / "b")
    assert (tmp_path / "b" / "model.safetensors").read_text() == "w"
    assert (tmp_path / "b" / "model.safetensors").stat().st_nlink == 1
