"""Side tables: numbers beside the groups they are of, and of no others."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import columns, tables
from pipeline.errors import UserError
from pipeline.records import Completion, Group, Message
from tests import given


def group(name: str, *texts: str) -> Group:
    return Group(name, (Message("user", "?"),), tuple(Completion(t, (5, 2), scores={"old": 1.0}) for t in texts), (1,))


GROUPS = [group("a", "x", "y"), group("none"), group("b", "z")]


def test_rows_are_ids_places_and_numbers(tmp_path: Path) -> None:
    """A number that is not there is null, one that is no number stays what it is; the group is not copied."""
    part = columns.write_part(tmp_path / "s", 2, [
        ("d", "a", [{"reward": 1.5, "gold": 7.0}, {"reward": math.nan}]), ("d", "none", []),
        ("e", "b", [{"gold": 3.0}])])
    assert part.name == "part-00002.parquet"
    table = columns.load([tmp_path / "s"], "d")
    assert table is not None and table.column_names == ["id", "k", "reward", "gold"]
    first, second = table.to_pylist()
    assert first == {"id": "a", "k": 0, "reward": 1.5, "gold": 7.0}
    assert (second["id"], second["k"], second["gold"]) == ("a", 1, None) and math.isnan(second["reward"])
    assert columns.load([tmp_path / "s"], "e").to_pylist() == [{"id": "b", "k": 0, "reward": None, "gold": 3.0}]
    assert columns.load([tmp_path / "s"], "nobody") is None


def test_parts_are_joined_in_their_order_and_other_columns_are_null(tmp_path: Path) -> None:
    columns.write_part(tmp_path / "s", 1, [("d", "b", [{"gold": 3.0}])])
    columns.write_part(tmp_path / "s", 0, [("d", "a", [{"reward": 1.0}])])
    assert columns.load([tmp_path / "s"], "d").to_pylist() == [
        {"id": "a", "k": 0, "reward": 1.0, "gold": None}, {"id": "b", "k": 0, "reward": None, "gold": 3.0}]


def test_groups_get_the_scores_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A score of the same name is replaced, others stay; a null gives none; nothing else of a group changes."""
    monkeypatch.setattr(columns, "_GROUPS", 2)
    source = given.write(tmp_path / "in", GROUPS)
    columns.write_part(tmp_path / "s", 0, [(source.digest, "a", [{"old": 2.0, "new": 3.0}, {"old": 4.0}])])
    columns.write_part(tmp_path / "s", 1, [(source.digest, "b", [{"old": 5.0}])])
    found = list(columns.with_scores(source, [tmp_path / "s"]))
    assert [[c.scores for c in g.completions] for g in found] == [
        [{"old": 2.0, "new": 3.0}, {"old": 4.0}], [], [{"old": 5.0}]]
    assert [replace(g, completions=tuple(replace(c, scores={"old": 1.0}) for c in g.completions))
            for g in found] == GROUPS


def test_log_probs_go_where_a_scorer_reads_them(tmp_path: Path) -> None:
    source = given.write(tmp_path / "in", GROUPS[:1])
    logps = given.side_table(tmp_path / "l", source, columns.LOGP, [(-1.0, -2.0)])
    (found,) = columns.with_logps(source, [logps])
    assert [c.ref_logp for c in found.completions] == [-1.0, -2.0]


def test_a_table_of_other_groups_is_refused(tmp_path: Path) -> None:
    source = given.write(tmp_path / "in", GROUPS)
    scores = given.side_table(tmp_path / "s", given.write(tmp_path / "other", GROUPS), "reward", [(1, 2), (), (3,)])
    with pytest.raises(UserError, match=r"s: no scores of .*in, it is of another table; make it of exactly this one"):
        list(columns.with_scores(source, [scores]))
    short = given.side_table(tmp_path / "short", source, "reward", [(1, 2), (), ()])
    with pytest.raises(UserError, match="rows from 0 on are not of the groups from 'a' on"):
        list(columns.with_scores(source, [short]))


def test_an_empty_table(tmp_path: Path) -> None:
    source = given.write(tmp_path / "in", [])
    columns.write_part(tmp_path / "s", 0, [])
    assert list(columns.with_scores(source, [tmp_path / "s"])) == []


def test_a_side_table_is_small(tmp_path: Path) -> None:
    """1,000 answers of 100 tokens: their scores take less than a twentieth of them."""
    groups = [Group(f"prompt-{i:05d}", (Message("user", f"q {i}"),), tuple(
        Completion(" ".join(str(i * j * k % 977) for j in range(100)), tuple(i * j * k % 977 for j in range(100)))
        for k in range(4))) for i in range(250)]
    source = given.write(tmp_path / "in", groups)
    given.side_table(tmp_path / "s", source, "reward", [[i / 7 + k for k in range(4)] for i in range(250)])
    size = {name: sum(p.stat().st_size for p in tables.parts(tmp_path / name)) for name in ("in", "s")}
    assert 20 * size["s"] < size["in"]
    assert pq.read_metadata(tables.parts(tmp_path / "s")[0]).num_rows == 1000
