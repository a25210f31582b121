"""`align compare`: seeds become one arm, arms are tested on the same prompts, and each form says the same."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from flows.comparison import compare, made, seed_names
from flows.comparison_tables import tables, written
from pipeline import runs, store
from pipeline.errors import UserError


def finished(workspace: Path, name: str, seed: int, objective: str, *won: int, baseline: str = "b") -> None:
    """A run whose iterations won the first so many of ten prompts."""
    steps = []
    for i, number in enumerate(won, 1):
        rows = [{"id": f"p{k}", "outcome": float(k < number)} for k in range(10)]
        parts = {"version": 1, "settings": {"score": "gold", "judgments": None}, "seed": seed,
                 "inputs": {"baseline": [baseline], "groups": [name]}}
        key = store.fingerprint("evaluate", **{**parts, "settings": {**parts["settings"], "i": i}})
        out = store.work_path(workspace, "evaluate", key) / "out"
        out.mkdir(parents=True)
        (out / "outcomes.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        (out / "evaluation.json").write_text('{"score": "gold"}')
        store.commit(workspace, "evaluate", key, {
            **parts, "counts": {"length_mean": 40.0 + i}, "dropped": {}, "step": f"evaluate[{i}]", "iteration": i,
            "run": name, "process_seconds": 1.0, "peak_memory_mb": 1.0, "created": 1.0, "git": "", "versions": {},
            "runtime": {}})
        steps.append({"name": f"evaluate[{i}]", "stage": "evaluate", "iteration": i, "key": key, "state": "done",
                      "inputs": []})
    config = {"seed": seed, "run": name, "objective": {"module": f"pipeline.objectives.{objective}"}, "choices": {}}
    words = ["recipe=pco", f"objective={objective}", f"seed={seed}", f"run={name}", "trainer.sft.epochs=2"]
    runs.save(workspace, runs.Run(name, config, words, {}, steps, runs.DONE, 0.0))


@pytest.fixture
def three(tmp_path: Path) -> Path:
    finished(tmp_path, "a", 0, "dpo", 4, 6)
    finished(tmp_path, "b", 1, "dpo", 6, 6)
    finished(tmp_path, "c", 0, "ipo", 9, 10)
    return tmp_path


def test_seeds_are_one_arm_and_only_what_differs_is_shown(three: Path, capsys: pytest.CaptureFixture):
    """0.4 and 0.6: mean 0.5, sd sqrt(0.02). IPO won 4 more of 10 than DPO by the one seed that both have."""
    assert compare(["a", "b", "c", f"workspace={three}"]) == 0
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert rows[1:4] == ["arm objective runs", "A dpo 2", "B ipo 1"]
    assert [row for row in rows if row.startswith("A 1 2 50.0 ± 14.1 ") and row.endswith(" 41.0 ± 0.0 none none")]
    assert [row for row in rows if row.startswith("B 2 1 100.0 100.0 to 100.0")]
    assert [row.split()[:4] for row in rows if row.startswith("B2 - A2")] == [["B2", "-", "A2", "+40.0"]]
    assert "trainer" not in " ".join(rows)
    assert max(len(row) for row in rows) <= 80


def test_each_form_has_the_numbers_and_the_csv_their_origin(three: Path, tmp_path: Path):
    for form in (".csv", ".md", ".tex"):
        compare(["a", "b", "c", f"workspace={three}"], to=str(tmp_path / f"x{form}"))
    rows = list(csv.DictReader((tmp_path / "x.csv").open()))
    rate = next(row for row in rows if row["number"] == "win_rate" and row["arm"] == "A" and row["iteration"] == "1")
    assert (rate["mean"], rate["seeds"], rate["runs"], rate["objective"]) == ("0.5", "0, 1", "a b", "dpo")
    stage, key = rate["artifacts"].split()[0].split("/")
    assert (store.artifact_path(three, stage, key) / "outcomes.jsonl").is_file()
    moved = next(row for row in rows if (row["number"], row["arm"], row["against_arm"]) == ("difference", "B", "A"))
    assert float(moved["mean"]) == pytest.approx(0.4) and moved["seeds"] == "0"
    assert "| A | 1 | 2 | 50.0 ± 14.1 |" in (tmp_path / "x.md").read_text()
    assert r"A & 1 & 2 & 50.0 $\pm$ 14.1" in (tmp_path / "x.tex").read_text()


def test_another_baseline_is_not_tested_against(tmp_path: Path):
    finished(tmp_path, "a", 0, "dpo", 5)
    finished(tmp_path, "b", 0, "ipo", 9, baseline="c")
    records = [vars(runs.load(tmp_path, name)) for name in "ab"]
    found = made(records, lambda kind, key: store.find(tmp_path, kind, key).manifest,
                 lambda kind, key: store.artifact_path(tmp_path, kind, key))
    assert [one.found for one in found.differences] == ["judged by another score or against other answers"]
    assert "other answers" in written(found, ".md")
    assert [table.headers[0] for table in tables(found)] == ["arm", "arm", "difference"]


def test_a_seed_is_called_by_what_differs():
    def config(seed: int, **seeds: int) -> dict:
        return {"seed": seed, "seeds": {"data": 0, "sft": 0, "reward": 0, "train": 0, **seeds}}

    assert seed_names([config(0), config(1, sft=1)]) == ["0", "1"]
    assert seed_names([config(0), config(0, train=4)]) == ["0 train 0", "0 train 4"]
    assert seed_names([{"seed": 0}, {"seed": 3}]) == ["0", "3"]


def test_of_a_sweep_what_is_there_is_compared_and_the_rest_named(three: Path, capsys: pytest.CaptureFixture):
    finished(three, "none", 0, "cpo")
    (three / "sweeps" / "s").mkdir(parents=True)
    listed = [{"run": name, "words": []} for name in ("a", "none", "not-begun")]
    (three / "sweeps" / "s" / "sweep.json").write_text(json.dumps({"name": "s", "words": [], "runs": listed}))
    assert compare(["sweep=s", f"workspace={three}"]) == 0
    assert "not in it: none has no evaluation yet" in capsys.readouterr().out


def test_what_cannot_be_compared_is_named(three: Path):
    finished(three, "again", 0, "dpo", 5)
    finished(three, "none", 0, "cpo")
    where = f"workspace={three}"
    with pytest.raises(UserError, match=r"no run named 'agian' .*\(did you mean again\?\)"):
        compare(["agian", where])
    with pytest.raises(UserError, match="a, again differ in nothing, not even the seed"):
        compare(["a", "again", where])
    with pytest.raises(UserError, match="sed: unknown here"):
        compare(["a", where, "sed=1"])
    with pytest.raises(UserError, match=r"none has no evaluation yet, it is done; .* with:\s+align run run=none"):
        compare(["a", "none", where])
    with pytest.raises(UserError, match=r"--to: '.txt' is none of .csv, .md, .tex"):
        compare(["a", where], to="x.txt")
    with pytest.raises(UserError, match="no sweep named 'x'"):
        compare(["sweep=x", where])
