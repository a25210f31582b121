"""Iterations side by side: the paired gain, and what cannot be compared."""

import json
from pathlib import Path

import pytest

from pipeline.config import build
from pipeline.errors import UserError
from pipeline.stage import Context, Reporter
from pipeline.stages import report
from pipeline.stages.report import Settings, gain, prompt_outcomes


def evaluation(folder: Path, outcomes: dict[str, list[float]], score: str = "gold") -> Path:
    """What `evaluate` writes, for the outcomes of each prompt's samples."""
    folder.mkdir(parents=True)
    flat = [v for values in outcomes.values() for v in values]
    verdict = {"wins": flat.count(1.0), "ties": flat.count(0.5), "losses": flat.count(0.0), "mean": 1.0,
               "baseline_mean": 0.5, "win_rate": sum(flat) / len(flat), "low": 0.0, "high": 1.0}
    controlled = {"win_rate": 0.5, "low": 0.4, "high": 0.6}
    side = {"tokens": 3.0, "words": 2.0, "truncated": 0.0}
    result = {"score": score, "confidence": 0.95, "scores": {score: verdict}, "policy": side, "baseline": side,
              "length_controlled": controlled,
              "categories": {"cook": {"prompts": 3, **controlled}, "math": {"prompts": 1, **controlled}}}
    (folder / "evaluation.json").write_text(json.dumps(result))
    sizes = {"characters": 12, "baseline_characters": 10}
    lines = [
        {"id": i, "sample": k, "outcome": v, **sizes} for i, values in outcomes.items() for k, v in enumerate(values)
    ]
    (folder / "outcomes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def run(folder: Path, *evaluations: Path, **settings: object) -> tuple[list[dict], Reporter, Path]:
    reporter = Reporter()
    inputs = {"evaluations": evaluations}
    made = build(Settings, {"resamples": 200, **settings})
    context = Context(made, report.STAGE.runtime(), inputs, {}, folder, 0, reporter)
    report.run(context)
    return json.loads((context.out / "comparison.json").read_text()), reporter, context.out


def test_gain_is_paired_by_prompt(tmp_path: Path):
    """Iteration 1: a 0, b 1, c 0.5 (of samples 1 and 0). Iteration 2: a 1, b 1, c 1. Gains 1, 0, 0.5: mean 0.5."""
    first = evaluation(tmp_path / "1", {"a": [0.0], "b": [1.0], "c": [1.0, 0.0]})
    second = evaluation(tmp_path / "2", {"a": [1.0], "b": [1.0], "c": [1.0, 1.0]})
    entries, reporter, out = run(tmp_path / "work", first, second)
    assert [entry["iteration"] for entry in entries] == [1, 2]
    assert entries[0]["gain"] is None
    assert entries[1]["gain"]["mean"] == 0.5
    assert entries[1]["gain"]["prompts"] == 3
    assert reporter.counts["gain"] == 0.5
    assert entries[1]["gain"]["p_value"] == 0.5  # two prompts moved, both up: ++ and -- of 4 sign patterns
    rows = (out / "comparison.md").read_text().splitlines()
    assert len(rows) == 9 and "50.0% (40.0% to 60.0%)" in rows[3]
    assert rows[7] == "| cook | 3 | 50.0% (40.0% to 60.0%) | 50.0% (40.0% to 60.0%) |"
    assert "+50.0%" in rows[3]
    assert "+50.0%" not in rows[2]


def test_rates_against_different_baselines_are_not_subtracted(tmp_path: Path):
    first, second = (evaluation(tmp_path / n, {"a": [1.0], "b": [0.0], "c": [1.0]}) for n in "12")
    entries, reporter, _ = run(tmp_path / "work", first, second, fixed_baseline=False)
    assert [(e["gain"], e["length_controlled_jointly"]) for e in entries] == [(None, None)] * 2
    assert "gain" not in reporter.counts


def test_a_constant_gain_has_an_interval_that_separate_intervals_would_hide():
    """Ten prompts from 0 to 1 before, each 0.1 better after: paired, the gain is 0.1 for certain."""
    before = {str(i): i / 10 for i in range(10)}
    after = {name: value + 0.1 for name, value in before.items()}
    found = gain(before, after, Settings(), seed=1)
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


def test_several_iterations_tell_how_hard_the_prompts_are(tmp_path: Path):
    """Equal lengths: controlling changes little. The second iteration wins more often, so its rate is higher."""
    first = evaluation(tmp_path / "1", {"a": [0.0], "b": [1.0], "c": [0.0], "d": [0.5]})
    second = evaluation(tmp_path / "2", {"a": [0.5], "b": [1.0], "c": [0.0], "d": [1.0]})
    entries, _, _ = run(tmp_path / "work", first, second)
    rates = [entry["length_controlled_jointly"]["win_rate"] for entry in entries]
    assert rates == [pytest.approx(0.375, abs=0.02), pytest.approx(0.625, abs=0.02)]
    alone, _, _ = run(tmp_path / "alone", first)
    assert alone[0]["length_controlled_jointly"] is None


def test_one_iteration_has_no_gain(tmp_path: Path):
    entries, reporter, _ = run(tmp_path / "work", evaluation(tmp_path / "1", {"a": [1.0]}))
    assert len(entries) == 1
    assert "gain" not in reporter.counts


def test_samples_of_a_prompt_are_averaged(tmp_path: Path):
    folder = evaluation(tmp_path / "1", {"a": [1.0, 0.0, 0.5, 0.5]})
    assert prompt_outcomes(folder / "outcomes.jsonl") == {"a": 0.5}


def test_what_cannot_be_compared_is_refused(tmp_path: Path):
    first = evaluation(tmp_path / "1", {"a": [1.0]})
    with pytest.raises(UserError, match=r"different scores \(gold, reward\)"):
        run(tmp_path / "w1", first, evaluation(tmp_path / "2", {"a": [1.0]}, score="reward"))
    with pytest.raises(UserError, match="share no prompt"):
        run(tmp_path / "w2", first, evaluation(tmp_path / "3", {"b": [1.0]}))
