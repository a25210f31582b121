"""Tables on disk: what most data need, and the wider form of those that bring more."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from pipeline import tables
from pipeline.records import Completion, Group, Message, Target, as_json, target_of

PLAIN = Group("p", (Message("user", "a"),), (Completion("b"),))
RICH = Group("r", (Message("user", "a"), Message("assistant", "", '{"tool_calls": []}'), Message("tool", "c")),
             (Completion("b", more='{"reasoning_content": "d"}'),), template='{"tools": []}')


EXPLAINED = Group("e", (Message("user", "a"),), (Completion("b"), Completion("c")),
                  rationale=Completion("b is first", (7, 2), prompt_ids=(1, 5)))


def test_fields_of_turns_and_variables_of_the_template_come_back(tmp_path: Path) -> None:
    tables.write(tmp_path / "t", [PLAIN, RICH])
    assert list(tables.read(tmp_path / "t")) == [PLAIN, RICH]


def test_what_an_answer_is_checked_against_comes_back(tmp_path: Path) -> None:
    target = Target(answer="B", choices=("red", "blue"), instructions=({"id": "x", "kwargs": {"n": 2}},))
    group = Group("g", (Message("user", "q"),), target=as_json(target))
    tables.write_part(tmp_path, 0, [group, Group("h", (Message("user", "r"),))])
    checked, bare = tables.read(tmp_path)
    assert (checked, target_of(checked), target_of(bare)) == (group, target, None)
    assert json.loads(group.target) == {"answer": "B", "choices": ["red", "blue"],
                                        "instructions": [{"id": "x", "kwargs": {"n": 2}}]}


def test_a_rationale_comes_back(tmp_path: Path) -> None:
    tables.write(tmp_path / "t", [PLAIN, RICH, EXPLAINED])
    assert list(tables.read(tmp_path / "t")) == [PLAIN, RICH, EXPLAINED]


def test_a_table_without_any_keeps_its_schema(tmp_path: Path) -> None:
    """So what was made before there were such fields has the bytes it had; parts of one table may differ."""
    tables.write(tmp_path / "t", [PLAIN, RICH], part_size=1)
    narrow, wide = (pq.read_schema(part) for part in tables.parts(tmp_path / "t"))
    assert narrow == tables.SCHEMA and wide == tables.WIDER
    assert "template" not in narrow.names and "rationale" not in wide.names and "more" not in str(narrow)
    assert list(tables.read(tmp_path / "t")) == [PLAIN, RICH]
