"""Which groups of several iterations are trained on: the newest of each prompt, a rule, and where they come from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import columns, tables
from pipeline.config import build
from pipeline.errors import UserError
from pipeline.lm import examples
from pipeline.lm.side_tables import SideTables
from pipeline.records import Completion, Group, Message
from pipeline.stage import Context, Reporter
from pipeline.stages import replay
from tests import given


def group(name: str, prompt: str, iteration: int, dataset: str = "set") -> Group:
    answers = tuple(Completion(text, (7, 2)) for text in ("good", "bad"))
    return Group(name, (Message("user", prompt),), answers, (1, 5), dataset=dataset, iteration=iteration)


# "b" is sampled from in both iterations; the second made two groups of it.
TABLES = {
    "own": [group("a", "A", 0), group("c", "C", 0)],
    "first": [group("b/1", "B", 1), group("d/1", "D", 1)],
    "second": [group("b/2", "B", 2, "week2"), group("b/3", "B", 2, "week2"), group("e/2", "E", 2, "week2")]}


def run(tmp_path: Path, **rule: Any) -> tuple[Context, list[columns.Source]]:
    sources = [given.write(tmp_path / name, groups) for name, groups in TABLES.items()]
    paths = tuple(source.path for source in sources)
    context = Context(build(replay.Settings, {"rule": rule}), None, {"groups": paths}, given.digests({"groups": paths}),
                      tmp_path / "work", 0, Reporter())
    replay.run(context)
    return context, sources


def kept(context: Context, sources: list[columns.Source]) -> list[str]:
    return [one.id for source in sources for one in columns.replayed(source, [context.out / "kept"])]


def test_of_a_prompt_the_newest_groups_stay_and_every_row_says_where_it_is_from(tmp_path: Path) -> None:
    context, sources = run(tmp_path, module="pipeline.replay.all")
    assert kept(context, sources) == ["a", "c", "d/1", "b/2", "b/3", "e/2"]
    assert context.report.dropped == {replay.OLDER: 1}
    rows = columns.load([context.out / "kept"], sources[2].digest).to_pylist()
    assert rows[0] == {"id": "b/2", "k": 0, "replay": 1.0, "iteration": 2.0} and len(rows) == 6
    assert context.report.counts == {"groups": 7, "kept": 6, "on_policy_share": 0.5}


def test_the_table_of_origins(tmp_path: Path) -> None:
    """Weights 0.25 for the data set, 0.5 for iteration 1, 1 for iteration 2: 0.5 + 0.5 + 3 = 4."""
    context, _ = run(tmp_path, module="pipeline.replay.weighted")
    assert json.loads((context.out / "replay.json").read_text()) == {"rule": "pipeline.replay.weighted", "from": [
        {"iteration": 0, "dataset": "set", "groups": 2, "kept": 2, "weight": 0.5, "share": 0.125},
        {"iteration": 1, "dataset": "set", "groups": 2, "kept": 1, "weight": 0.5, "share": 0.125},
        {"iteration": 2, "dataset": "week2", "groups": 3, "kept": 3, "weight": 3.0, "share": 0.75}]}


def test_training_sees_what_is_kept_with_its_weight(tmp_path: Path) -> None:
    context, sources = run(tmp_path, module="pipeline.replay.weighted")
    found = examples.load(sources, tmp_path / "flat", SideTables(replay=[context.out / "kept"]), [2])
    assert [(one.id, one.weight) for one in found] == [
        ("a", 0.25), ("c", 0.25), ("d/1", 0.5), ("b/2", 1.0), ("b/3", 1.0), ("e/2", 1.0)]
    again = examples.load(sources, tmp_path / "flat", SideTables(replay=[context.out / "kept"]), [2])
    assert examples.ids_of(again) == examples.ids_of(found)


def test_an_id_that_two_iterations_have_is_no_problem_where_one_is_kept(tmp_path: Path) -> None:
    TABLES_OF = [given.write(tmp_path / "x", [group("p", "P", 1)]), given.write(tmp_path / "y", [group("p", "P", 2)])]
    with pytest.raises(UserError, match="occurs in input 0 and in input 1"):
        examples.load(TABLES_OF, tmp_path / "flat", None, [2])
    for index, (source, factor) in enumerate(zip(TABLES_OF, (0.0, 1.0), strict=True)):
        columns.write_part(tmp_path / "kept", index, [(source.digest, "p", [{columns.REPLAY: factor}] * 2)])
    found = examples.load(TABLES_OF, tmp_path / "flat", SideTables(replay=[tmp_path / "kept"]), [2])
    assert len(found) == 1


def test_a_killed_one_goes_on_behind_its_last_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_PART", 3)
    context, _ = run(tmp_path, module="pipeline.replay.all")
    parts = tables.parts(context.out / "kept")
    whole = [part.read_bytes() for part in parts]
    assert len(parts) == 3
    parts[2].unlink()
    times = [part.stat().st_mtime_ns for part in parts[:2]]
    replay.run(replace(context, report=Reporter()))
    assert [part.read_bytes() for part in parts] == whole
    assert [part.stat().st_mtime_ns for part in parts[:2]] == times


def test_shares_of_the_origins_by_hand() -> None:
    rows = replay.origins(np.array([0, 1]), np.array([0, 0]), np.array([0.0, 2.0]), ["x"])
    assert [(row["kept"], row["share"]) for row in rows] == [(0, 0.0), (1, 1.0)]
