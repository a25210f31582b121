"""Runs side by side: seeds become one line, by hand."""

import json
from pathlib import Path

import pytest

from flows.inspection import compare, key_differences
from pipeline import report, runs
from pipeline.errors import UserError


def finished(workspace: Path, name: str, seed: int, beta: float, *win_rates: float) -> None:
    config = {"seed": seed, "run": name, "objective": {"beta": beta}, "choices": {}}
    overrides = ["recipe=dpo", f"run={name}", f"seed={seed}", f"objective.beta={beta}"]
    runs.save(workspace, runs.Run(name, config, overrides, {}, [], runs.DONE, 0.0))
    empty = dict.fromkeys(report.COMPARED)
    rows = [{**empty, "iteration": 0}] + [{**empty, "iteration": i, "win_rate": w} for i, w in enumerate(win_rates, 1)]
    (runs.folder(workspace, name) / "report.json").write_text(json.dumps({"iterations": rows}))


def test_seeds_of_one_setting_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    """0.5 and 0.7: mean 0.6, sd sqrt(0.02) = 0.141. Another beta is another line, a single seed has no deviation."""
    finished(tmp_path, "a", 0, 0.1, 0.5, 0.6)
    finished(tmp_path, "b", 1, 0.1, 0.7, 0.6)
    finished(tmp_path, "c", 0, 0.5, 0.4)
    assert compare(["a", "b", "c", f"workspace={tmp_path}"]) == 0
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "recipe=dpo objective.beta=0.1 0, 1 1 0.600 ± 0.141" in rows
    assert "recipe=dpo objective.beta=0.1 0, 1 2 0.600 ± 0.000" in rows
    assert "recipe=dpo objective.beta=0.5 0 1 0.400" in rows


def test_what_cannot_be_compared_is_named(tmp_path: Path):
    finished(tmp_path, "first", 0, 0.1, 0.5)
    finished(tmp_path, "again", 0, 0.1, 0.5)
    where = f"workspace={tmp_path}"
    with pytest.raises(UserError, match=r"no run named 'firts' .*\(did you mean first\?\)"):
        compare(["firts", where])
    with pytest.raises(UserError, match="first, again differ in nothing, not even the seed"):
        compare(["first", "again", where])
    with pytest.raises(UserError, match="sed: unknown here"):
        compare(["first", where, "sed=1"])
    (runs.folder(tmp_path, "first") / "report.json").unlink()
    with pytest.raises(UserError, match="first has no report yet, it is done; finish it with: align run run=first"):
        compare(["first", where])


def test_missing_numbers_stay_missing():
    full = dict.fromkeys(report.COMPARED, 1.0)
    rows = [[{"iteration": 1, **full, "margin": m}] for m in (None, 1.0, 3.0)]
    (line,) = report.over_seeds(rows)
    assert line["margin"] == (2.0, pytest.approx(2**0.5), 2)
    assert report.over_seeds([[{"iteration": 1, **dict.fromkeys(report.COMPARED)}]])[0]["win_rate"] is None


def test_a_list_and_a_tuple_are_one_setting():
    """As a manifest has it, and as a plan has it."""
    mine = {"version": 1, "settings": {"require": ("sft",), "n": 1}, "inputs": {}, "seed": None}
    there = {"version": 1, "settings": {"require": ["sft"], "n": 2}, "inputs": {}, "seed": None}
    assert key_differences(mine, there) == [("settings.n", 2, 1)]
