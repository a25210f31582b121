"""New prompts of a run that goes on: those that it has already are left out, other files than were added refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import tables
from pipeline.config import build
from pipeline.errors import UserError
from pipeline.files import file_hash
from pipeline.records import Completion, Group, Message
from pipeline.stage import Context, Reporter
from pipeline.stages import import_prompts

ROWS = [{"prompt": "Known to us?"}, {"prompt": "known  to US?"}, {"prompt": "New?", "id": 1},
        {"prompt": "Pair", "chosen": "a", "rejected": "b"}]


def put(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def context(tmp_path: Path, root: Path, content: tuple[str, ...]) -> Context:
    known = tmp_path / "known"
    tables.write(known, [Group("week2/1", (Message("user", "Known to us?"),), (Completion("yes"),))])
    return Context(build(import_prompts.Settings, {}), import_prompts.Runtime(str(root), content), {"known": (known,)},
                   {}, tmp_path / "work", 0, Reporter())


def test_only_prompts_that_are_new_and_ids_that_nobody_has(tmp_path: Path) -> None:
    """An eval in a file's name means nothing here; an answer is no part of a prompt."""
    file = put(tmp_path / "week2.eval.jsonl", ROWS)
    given = context(tmp_path, file, (f"{file.name}:{file_hash(file)}",))
    import_prompts.run(given)
    found = list(tables.read(given.out / "unlabeled"))
    assert [(g.messages[0].content, g.completions) for g in found] == [("New?", ()), ("Pair", ())]
    assert given.report.dropped == {import_prompts.KNOWN: 2}
    assert given.report.counts["unlabeled"] == 2 and given.report.counts["rows"] == 4
    assert len({g.id for g in found}) == 2 and "week2/1" not in {g.id for g in found}


def test_a_file_that_changed_and_one_with_nothing_new_are_refused(tmp_path: Path) -> None:
    file = put(tmp_path / "week2.jsonl", ROWS[:1])
    mark = (f"{file.name}:{file_hash(file)}",)
    with pytest.raises(UserError, match="the run has all of its 1 prompts already"):
        import_prompts.run(context(tmp_path, file, mark))
    put(file, ROWS)
    with pytest.raises(UserError, match="has changed since it was added to the run"):
        import_prompts.run(context(tmp_path, file, mark))


def test_the_plan_counts_rows_and_tells_wrong_ones(tmp_path: Path) -> None:
    file = put(tmp_path / "week2.jsonl", ROWS)
    problems, counts = import_prompts.foresee(import_prompts.Settings(), import_prompts.Runtime(str(file)))
    assert problems == [] and counts["unlabeled"] == 4 and counts["read as pairs"] == 1
    put(file, [{"foo": 1}])
    problems, _ = import_prompts.foresee(import_prompts.Settings(), import_prompts.Runtime(str(file)))
    assert f"{file}:1: has the keys foo" in problems[0]
