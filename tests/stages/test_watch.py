"""Questions with known answers: read, drawn, checked by the rule for what they bring, compared with the start model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows import watched
from pipeline import tables
from pipeline.config import build
from pipeline.errors import UserError
from pipeline.formats.contract import Format
from pipeline.formats.splits import Imported
from pipeline.records import Completion, Group, Message, Target, as_json
from pipeline.stage import Context, Reporter
from pipeline.stages import watch, watch_items
from tests import given

TARGETS = {"sum": Target(answer="4"), "choice": Target(answer="B", choices=("one", "two")),
           "form": Target(instructions=({"id": "punctuation:no_comma"},)), "open": Target()}


@dataclass(frozen=True)
class Questions:
    number: int = 4


def groups_of(**answers: str) -> list[Group]:
    return [Group(name, (Message("user", f"question {name}"),), (Completion(text),), target=as_json(TARGETS[name])
                  if name != "open" else "") for name, text in answers.items()]


def read(root: Path, settings: Questions) -> Imported:
    def groups() -> Iterator[tuple[str, Group]]:
        return iter([("sft", group) for group in groups_of(sum="4", choice="B", form="x", open="y")][: settings.number])

    return Imported({}, {}, 0, groups)


FORMAT = Format(Questions, "questions", lambda root, settings: [root], read)


def compared(folder: Path, now: dict[str, str], start: dict[str, str]) -> tuple[dict, Reporter]:
    for name, answers in (("groups", now), ("start", start)):
        tables.write(folder / name, groups_of(**answers))
    inputs, report = {name: (folder / name,) for name in ("groups", "start")}, Reporter()
    made = watch.Settings(), watch.STAGE.runtime(), inputs, given.digests(inputs)
    watch.run(Context(*made, folder / "work", 0, report))
    return json.loads((folder / "work" / "out" / "watch.json").read_text()), report


def test_what_was_lost_and_won(tmp_path: Path) -> None:
    """The sum is lost, the choice won, the form kept; what has no known answer does not count. 2 of 3 both times."""
    found, report = compared(tmp_path, {"sum": "It is 5.", "choice": "The answer is B", "form": "no", "open": "a"},
                             {"sum": "It is 4.", "choice": "The answer is A", "form": "no", "open": "a"})
    assert (found["questions"], found["lost"], found["won"]) == (3, 1, 1)
    assert found["accuracy"] == found["start_accuracy"] == pytest.approx(2 / 3)
    assert found["gain"] == 0.0
    assert found["gain_low"] < 0.0 < found["gain_high"]
    assert found["accuracy_low"] < 2 / 3 < found["accuracy_high"]
    assert report.counts["accuracy"] == found["accuracy"]
    assert [row for row in found["rows"] if row["now"] != row["start"]] == [
        {"id": "choice", "now": 1.0, "start": 0.0}, {"id": "sum", "now": 0.0, "start": 1.0}]
    (line,) = watched.table([(2, found)]).splitlines()[2:]
    assert [cell.strip() for cell in line.strip("|").split("|")][:2] + line.strip("| ").split(" | ")[-2:] == [
        "2", "3", "1", "1"]
    assert watched.table([]) == ""


def test_nothing_that_can_be_checked_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no question was answered by both models"):
        compared(tmp_path, {"open": "a"}, {"open": "b"})


def items(folder: Path, tiny_model: Path, number: int, **settings: int) -> tuple[list[Group], Reporter]:
    report = Reporter()
    made = build(watch_items.Settings, {"format": {"module": __name__, "number": number}, **settings})
    inputs = {"model": (tiny_model,)}
    watch_items.run(Context(made, watch_items.Runtime(str(folder)), inputs, given.digests(inputs), folder, 0, report))
    return list(tables.read(folder / "out" / "groups")), report


def test_questions_are_prompts_with_what_their_answers_are_checked_against(tmp_path: Path, tiny_model: Path) -> None:
    """Their own answers are not shown; those without a known one are counted; of three two are drawn: the same."""
    found, report = items(tmp_path / "all", tiny_model, 4)
    assert {group.id for group in found} == {"sum", "choice", "form"}
    assert all(group.prompt_ids and not group.completions and group.target for group in found)
    assert report.dropped == {"without a known answer": 1}
    assert [group.id for group in items(tmp_path / "two", tiny_model, 4, count=2)[0]] == [g.id for g in found[:2]]
    with pytest.raises(UserError, match="has no question with a known answer"):
        items(tmp_path / "none", tiny_model, 0)


def test_what_cannot_be_watched_is_said_at_plan(tmp_path: Path) -> None:
    """Under the key the user gave: rows without a known answer, and a place that is not there."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "What is it?"}\n')
    files = build(watch_items.Settings, {"format": {"module": "pipeline.formats.files"}})
    assert watch_items.check(files, watch_items.Runtime(str(tmp_path)))[0].startswith(
        f"evaluation.watch.root: {tmp_path} has no question with a known answer")
    assert watch_items.check(files, watch_items.Runtime("/no/such"))[0].startswith(
        "evaluation.watch.root: /no/such cannot be opened")
    (tmp_path / "rows.jsonl").write_text('{"question": "2 + 2?", "answer": "It is 4.\\n#### 4"}\n')
    assert watch_items.check(files, watch_items.Runtime(str(tmp_path))) == []
