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


def pair(prompt: str, chosen: str = "a", **more: object) -> dict[str, object]:
    return {"prompt": prompt, "chosen": chosen, "rejected": "b", **more}


def joined(tmp_path: Path, rows: list[dict[str, object]], **settings: object) -> Context:
    """After the import of rows for iteration 3 of a run with one pair, an evaluation prompt and a sampled prompt."""
    file = put(tmp_path / "week3.jsonl", rows)
    known = {"pref": Group("week3/1", (Message("user", "Old pair?"),), (Completion("a"), Completion("b"))),
             "eval": Group("e", (Message("user", "Asked of it?"),)),
             "groups": Group("g", (Message("user", "Sampled?"),)),
             "more": Group("h", (Message("user", "Sampled, too?"),))}
    for name, group in known.items():
        tables.write(tmp_path / name, [group])
    made = Context(build(import_prompts.Settings, {"joins": 3, **settings}),
                   import_prompts.Runtime(str(file), (f"{file.name}:{file_hash(file)}",)),
                   {"known": tuple(tmp_path / name for name in known)}, {}, tmp_path / "work", 0, Reporter())
    import_prompts.run(made)
    return made


def test_preferences_join_the_iteration_and_other_rows_are_prompts(tmp_path: Path) -> None:
    """One about a prompt that was sampled before is kept; those about the evaluation, or there already, are not."""
    given = joined(tmp_path, [
        pair("Old pair?"), pair("Old pair?", "other", id=1), pair("Sampled?"), pair("Asked of it?"),
        {"prompt": "Sampled, too?"}, {"prompt": "New?"}, {"prompt": "Shown?", "completion": "so"}])
    found = list(tables.read(given.out / "pref"))
    assert [(g.messages[0].content, [c.text for c in g.completions], g.iteration, g.dataset) for g in found] == [
        ("Old pair?", ["other", "b"], 3, "week3"), ("Sampled?", ["a", "b"], 3, "week3")]
    assert "week3/1" not in {g.id for g in found}
    assert [(g.messages[0].content, g.completions) for g in tables.read(given.out / "unlabeled")] == [
        ("New?", ()), ("Shown?", ())]
    assert given.report.dropped == {import_prompts.KNOWN: 1, import_prompts.KNOWN_PAIR: 1, import_prompts.EVALUATED: 1}
    assert (given.report.counts["unlabeled"], given.report.counts["pref"]) == (2, 2)


def test_preferences_alone_give_their_prompts_too(tmp_path: Path) -> None:
    """Each once, under an id of its own: the samples of a prompt are other groups than its preferences."""
    given = joined(tmp_path, [pair("Sampled?"), pair("Sampled?", "other"), pair("New?")])
    pairs, prompts = ([*tables.read(given.out / name)] for name in ("pref", "unlabeled"))
    assert len(pairs) == 3 and [g.messages[0].content for g in prompts] == ["Sampled?", "New?"]
    assert not {g.id for g in pairs} & {g.id for g in prompts} and {g.iteration for g in prompts} == {0}


def test_how_preferences_are_read_and_what_others_want_of_them(tmp_path: Path) -> None:
    ranked = {"prompt": "New?", "answers": [{"answer": text, "rank": rank} for rank, text in enumerate("abc")]}
    (group,) = tables.read(joined(tmp_path, [ranked], format={"lists": "best_worst"}).out / "pref")
    assert [c.text for c in group.completions] == ["a", "c"]
    runtime = import_prompts.Runtime(str(tmp_path / "week3.jsonl"))
    two = {"two": "it learns from pairs"}
    assert import_prompts.lacks(import_prompts.Settings(), runtime, two) == []
    assert import_prompts.lacks(import_prompts.Settings(joins=3), runtime, two) == [
        f"data.new: {tmp_path}/week3.jsonl holds 1 lists of more than two answers, and it learns from pairs"]
    assert import_prompts.foresee(import_prompts.Settings(joins=3), runtime)[1]["pref"] == 1


def test_the_plan_counts_rows_and_tells_wrong_ones(tmp_path: Path) -> None:
    file = put(tmp_path / "week2.jsonl", ROWS)
    problems, counts = import_prompts.foresee(import_prompts.Settings(), import_prompts.Runtime(str(file)))
    assert problems == [] and counts["unlabeled"] == 4 and counts["read as pairs"] == 1
    put(file, [{"foo": 1}])
    problems, _ = import_prompts.foresee(import_prompts.Settings(), import_prompts.Runtime(str(file)))
    assert f"{file}:1: has the keys foo" in problems[0]
