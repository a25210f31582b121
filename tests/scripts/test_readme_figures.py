"""The figures of README: from what runs wrote and printed to the marked blocks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.readme_figures import Origin, Seed, demo_block, pooled, read, rewrite, seeds_block, seen

ORIGIN = Origin("2026-01-02", "abc1234", 2)
ELSEWHERE = Origin("2026-01-02", "abc1234", 2, "bfloat16", ("engine=transformers",))
OUTCOMES = ({"a": 0.75, "b": 0.75}, {"a": 1.0, "b": 0.5})


def seed(number: int, second: float, gain: tuple[float, float, float]) -> Seed:
    return Seed(number, ((0.75, 0.65, 0.85), (second, second - 0.1, second + 0.1)), gain, (0.8, 0.9),
                (30.0, 40.0, 50.0), (2.0, 8.0), (0.7, 0.6), OUTCOMES)


def test_the_numbers_are_read_from_the_artifacts_that_the_report_names(tmp_path: Path):
    """Iteration 1 wins 0.75 and iteration 2 0.7, so the gain is -0.05; the reward's rates are 0.8 and 0.9."""
    def entry(rate: float, learned: float, tokens: float, gain: dict[str, float] | None) -> dict[str, object]:
        return {"score": "gold", "gain": gain, "policy": {"tokens": tokens}, "baseline": {"tokens": 30.0},
                "length_controlled": {"win_rate": rate - 0.05},
                "scores": {"gold": {"win_rate": rate, "low": rate - 0.1, "high": rate + 0.1},
                           "reward": {"win_rate": learned}}}

    def write(kind: str, key: str, file: str, content: object) -> None:
        folder = tmp_path / "artifacts" / kind / key
        folder.mkdir(parents=True)
        (folder / file).write_text(json.dumps(content))

    write("report", "k1", "comparison.json", [
        entry(0.75, 0.8, 40.0, None), entry(0.7, 0.9, 50.0, {"mean": -0.05, "low": -0.1, "high": 0.01})])
    write("diagnose", "k2", "diagnostics.json", {"kl": {"per_answer": 2.0}})
    write("diagnose", "k3", "diagnostics.json", {"kl": {"per_answer": 8.0}})
    rows = [{"id": "a", "outcome": 1.0}, {"id": "a", "outcome": 0.5}, {"id": "b", "outcome": 0.0}]
    for key in ("k4", "k5"):
        write("evaluate", key, "outcomes.jsonl", rows[0])
        with (tmp_path / "artifacts/evaluate" / key / "outcomes.jsonl").open("w") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)
    steps = [("report[2]", "report", "k1"), ("diagnose[1]", "diagnose", "k2"), ("diagnose[2]", "diagnose", "k3"),
             ("evaluate[1]", "evaluate", "k4"), ("evaluate[2]", "evaluate", "k5")]
    (tmp_path / "runs/demo").mkdir(parents=True)
    (tmp_path / "runs/demo/report.json").write_text(
        json.dumps({"steps": [{"step": name, "kind": kind, "key": key} for name, kind, key in steps]}))
    found = read(tmp_path, 3)
    assert found.gold == ((0.75, 0.65, 0.85), (0.7, pytest.approx(0.6), pytest.approx(0.8)))
    assert (found.seed, found.gain, found.learned) == (3, (-0.05, -0.1, 0.01), (0.8, 0.9))
    assert (found.length, found.kl) == ((30.0, 40.0, 50.0), (2.0, 8.0))
    assert found.controlled == (pytest.approx(0.7), pytest.approx(0.65))
    assert found.outcomes == ({"a": 0.75, "b": 0.0},) * 2


def test_the_table_has_a_row_per_seed_and_their_mean():
    """Gains +5 and -3 points: mean +1. One interval is above zero, one holds it."""
    lines = seeds_block([seed(0, 0.80, (0.05, 0.01, 0.09)), seed(1, 0.72, (-0.03, -0.07, 0.01))], [ORIGIN] * 2)
    rows = [line.split(" | ") for line in lines.splitlines() if line.startswith("| ")]
    assert rows[2][1:4] == ["75.0% (65.0% to 85.0%)", "80.0% (70.0% to 90.0%)", "+5.0 (+1.0 to +9.0)"]
    assert rows[4][:4] == ["| mean", "75.0%", "76.0%", "+1.0"]
    assert rows[4][4:] == ["80.0%, 90.0%", "70.0%, 60.0%", "30.0, 40.0, 50.0", "2.0, 8.0 |"]
    assert lines.endswith("above zero with 1 of 2 seeds, below with 0, and holds zero with 1. "
                          "(2026-01-02, commit abc1234, 2 cores, float32.)")


def test_what_is_seen_counts_whole_intervals():
    found = seen([seed(0, 0.6, (-0.1, -0.15, -0.05))])
    assert found.endswith("Seed by seed, the whole interval of iteration 1 is above 50 % with 1 of 1 seed; the "
                          "interval of the gain is above zero with 0 of 1 seed, below with 1, and holds zero with 0.")


def test_pooled_seeds_have_prompts_as_units():
    """Prompt a gains 0.25 and 0.15, b loses 0.25 and 0.05: 0.2 and -0.15, mean 0.025, and no draw is beyond them.
    Iteration 1 wins 0.75 of both prompts with either seed: 0.25 above the SFT model, without any spread."""
    other = replace(seed(1, 0.7, (0.0, 0.0, 0.0)), outcomes=({"a": 0.75, "b": 0.75}, {"a": 0.9, "b": 0.7}))
    first, second = pooled([seed(0, 0.7, (0.0, 0.0, 0.0)), other])
    assert first == (0.25, 0.25, 0.25)
    assert second == (pytest.approx(0.025), pytest.approx(-0.15), pytest.approx(0.2))
    assert seen([seed(0, 0.7, (0.0, 0.0, 0.0)), other]).startswith(
        "2 seeds pooled, in points: iteration 1 less the SFT model +25.0 (+25.0 to +25.0, clear of zero), iteration 2 "
        "less iteration 1 +2.5 (-15.0 to +20.0, not clear of zero). ")


def test_the_precision_and_further_words_of_the_runs_are_named():
    assert seeds_block([seed(0, 0.7, (0.0, 0.0, 0.0))], [ELSEWHERE]).endswith(
        "(2026-01-02, commit abc1234, 2 cores, bfloat16, engine=transformers.)")


def test_the_demo_keeps_its_first_and_last_steps_and_no_paths():
    steps = "".join(f"  done    {i:>2}/25 step{i}\n  ...     step{i} 3/4\n" for i in range(1, 26))
    printed = f"run demo: 25 steps\n{steps}\ndemo: pco\niteration 1\n\n9.0 s\nreport    workspace/x\nlogs y\n"
    block = demo_block(printed, ORIGIN)
    kept = [line.split()[-1] for line in block.splitlines() if line.startswith("  done")]
    assert kept == ["step1", "step2", "step3", "step24", "step25"]
    assert block.count("...") == 1 and "3/4" not in block and "workspace" not in block
    assert block.startswith("2026-01-02, commit abc1234, 2 cores, float32:\n\n```\nrun demo")
    assert block.endswith("9.0 s\n```")


def test_only_the_marked_block_is_rewritten():
    text = "a\n<!-- figures: one -->\nold\n<!-- end -->\nb\n<!-- figures: two -->\nkept\n<!-- end -->\n"
    assert rewrite(text, "one", "new") == text.replace("old", "new")
    with pytest.raises(SystemExit, match="no block between <!-- figures: three -->"):
        rewrite(text, "three", "new")
