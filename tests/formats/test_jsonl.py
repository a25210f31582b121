"""The jsonl format: TRL's shapes in, groups out, every wrong row told with its line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import build
from pipeline.errors import UserError
from pipeline.formats import jsonl
from pipeline.formats.jsonl import Settings
from pipeline.formats.splits import Imported, Limits, Shares
from pipeline.records import Completion, Group
from tests import given


def said(*texts: str) -> list[dict[str, str]]:
    """Messages of user and assistant in turn."""
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


def bot(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def one(tmp_path: Path, split: str, row: Any) -> Group:
    """The group a row becomes in the split its file is named for; `sft` always has a file, so pairs stay pairs."""
    write(tmp_path / "other.jsonl", {"prompt": "another", "completion": "x"})
    write(tmp_path / "rows.jsonl", row)
    named: dict[str, Any] = {"sft": "other.jsonl", split: "rows.jsonl"}
    (group,) = given.splits(jsonl.read(tmp_path, Settings(**named, shares=Shares(unlabeled=0, eval=0))))[split]
    return group


def texts(group: Group) -> tuple[list[str], list[str]]:
    return [m.content for m in group.messages], [c.text for c in group.completions]


PAIRS = {
    "plain": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    "conversational": {"prompt": said("q"), "chosen": bot("good"), "rejected": bot("bad")},
    "plain prompt, whole conversations": {"prompt": "q", "chosen": said("q", "good"), "rejected": said("q", "bad")},
    "no prompt, whole conversations": {"chosen": said("q", "good"), "rejected": said("q", "bad")},
    "messages as prompt, texts as answers": {"prompt": said("q"), "chosen": "good", "rejected": "bad"},
}


@pytest.mark.parametrize("row", PAIRS.values(), ids=PAIRS)
def test_pairs(tmp_path: Path, row: Any) -> None:
    assert texts(one(tmp_path, "pref", row)) == (["q"], ["good", "bad"])


@pytest.mark.parametrize("value, read", [("It is right.", Completion("It is right.")), (None, None), ("", None)])
def test_a_rationale_of_a_pair(tmp_path: Path, value: Any, read: Any) -> None:
    """It is part of what the row is: the same pair with another rationale is another row."""
    plain = one(tmp_path, "pref", PAIRS["plain"])
    group = one(tmp_path, "pref", {**PAIRS["plain"], "rationale": value})
    assert group.rationale == read and (group.id == plain.id) == (read is None)
    assert replace(group, rationale=None, id=plain.id) == plain


def test_a_rationale_stays_with_the_preferences(tmp_path: Path) -> None:
    """Pairs also fill the other splits, where nothing reads it; beside one answer it is counted as unread."""
    rows = [{**PAIRS["plain"], "prompt": f"q{i}", "rationale": "It is right."} for i in range(40)]
    write(tmp_path / "rows.jsonl", *rows)
    found = given.splits(jsonl.read(tmp_path, Settings(shares=Shares(eval=5))))
    assert all(len(found[split]) > 0 for split in ("sft", "pref", "unlabeled", "eval"))
    assert {split: {g.rationale is not None for g in groups} for split, groups in found.items()} == {
        "sft": {False}, "pref": {True}, "unlabeled": {False}, "eval": {False}}
    write(tmp_path / "rows.jsonl", *({"prompt": f"q{i}", "completion": "a", "rationale": "x"} for i in range(9)))
    assert jsonl.read(tmp_path, Settings(shares=Shares(eval=5))).unread == {"rationale": 9}


def test_a_rationale_that_is_no_text(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", {**PAIRS["plain"], "rationale": ["good", "bad"]})
    with pytest.raises(UserError, match=r"rows.jsonl:1: rationale: .*expected a text that says why chosen is better"):
        jsonl.read(tmp_path, Settings())


def test_a_pair_keeps_its_turns(tmp_path: Path) -> None:
    row = {"chosen": said("a", "b", "c", "good"), "rejected": said("a", "b", "c", "bad")}
    group = one(tmp_path, "pref", row)
    assert [m.role for m in group.messages] == ["user", "assistant", "user"]
    assert texts(group) == (["a", "b", "c"], ["good", "bad"])


@pytest.mark.parametrize("row", [{"messages": said("q", "a")}, {"prompt": "q", "completion": "a"},
                                 {"prompt": said("q"), "completion": bot("a")}])
def test_demonstrations(tmp_path: Path, row: Any) -> None:
    assert texts(one(tmp_path, "sft", row)) == (["q"], ["a"])


@pytest.mark.parametrize("row", [{"prompt": "q"}, {"prompt": said("q")}, {"messages": said("q")},
                                 {"messages": said("q", "a")}, PAIRS["plain"]])
def test_prompts_come_from_any_row_without_its_answers(tmp_path: Path, row: Any) -> None:
    for split in ("unlabeled", "eval"):
        assert texts(one(tmp_path, split, row)) == (["q"], [])


@pytest.mark.parametrize("row", [{"prompt": "q", "completion": "a"}, {"messages": said("q", "a")}])
def test_labelled_answers(tmp_path: Path, row: Any) -> None:
    for label in (True, False):
        group = one(tmp_path, "pref", {**row, "label": label})
        assert (group.label, texts(group)) == (label, (["q"], ["a"]))


def test_texts_are_taken_as_they_are(tmp_path: Path) -> None:
    row = {"prompt": " q\n", "completion": "    indented\u2028code\n"}
    assert texts(one(tmp_path, "sft", row)) == ([" q\n"], ["    indented\u2028code\n"])


def test_an_id_is_kept_and_the_file_is_named(tmp_path: Path) -> None:
    group = one(tmp_path, "unlabeled", {"id": 7, "prompt": "q", "source": "ignored"})
    assert (group.id, group.dataset) == ("7", "rows")
    assert len(one(tmp_path, "unlabeled", {"prompt": "q"}).id) == 16


def test_without_named_files_the_keys_say_what_a_row_is(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"prompt": "p", "chosen": "x", "rejected": "y"}, {"prompt": "d", "completion": "x"})
    write(tmp_path / "b.jsonl", {"prompt": "u"})
    write(tmp_path / "b.test.jsonl", {"prompt": "e", "chosen": "x", "rejected": "y"})
    (tmp_path / "notes.txt").write_text("not read")
    made = jsonl.read(tmp_path, Settings())
    assert {split: [g.messages[0].content for g in groups] for split, groups in given.splits(made).items()} == {
        "sft": ["d"], "pref": ["p"], "unlabeled": ["u"], "eval": ["e"]}
    assert [f.name for f in jsonl.files(tmp_path, Settings())] == ["a.jsonl", "b.jsonl", "b.test.jsonl"]


def test_one_file_of_pairs_is_enough(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", *({"prompt": f"q{i}", "chosen": "x", "rejected": "y"} for i in range(300)))
    made = jsonl.read(file, Settings(limits=Limits(eval=4)))
    assert all(given.splits(made).values())
    assert sum(map(len, given.splits(made).values())) + sum(made.dropped.values()) == 300


def test_a_missing_split_is_filled_from_the_named_ones(tmp_path: Path) -> None:
    write(tmp_path / "s.jsonl", *({"prompt": f"q{i}", "completion": "x"} for i in range(90)))
    write(tmp_path / "p.jsonl", *({"prompt": f"r{i}", "chosen": "x", "rejected": "y"} for i in range(9)))
    made = jsonl.read(tmp_path, Settings(sft="s.jsonl", pref="p.jsonl"))
    assert len(given.splits(made)["pref"]) == 9
    assert given.splits(made)["unlabeled"]
    assert {g.messages[0].content[0] for g in given.splits(made)["unlabeled"]} == {"q"}


BAD = {
    "no prompt": ("pref", {"chosen": "x", "rejected": "y"}, "has no prompt, expected one beside chosen and rejected"),
    "no keys": ("sft", {"text": "x"}, "has no prompt, found the keys text; expected prompt + chosen"),
    "empty prompt": ("sft", {"prompt": " ", "completion": "x"}, "prompt: turn 1 (user) is empty"),
    "no turns": ("sft", {"prompt": [], "completion": "x"}, "prompt: has no prompt, expected at least one user turn"),
    "no rejected": ("pref", {"prompt": "q", "chosen": "x"}, "has no rejected, expected both sides"),
    "unknown role": ("sft", {"messages": [{"role": "human", "content": "q"}, *bot("a")]},
                     "prompt: turn 1 has role 'human'"),
    "assistant first": ("sft", {"messages": bot("a")}, "prompt: has no prompt"),
    "assistant last": ("unlabeled", {"prompt": said("q", "a")}, "prompt: the prompt ends with the assistant"),
    "two answers": ("sft", {"prompt": "q", "completion": said("q", "a", "b", "c")},
                    "completion: after the prompt comes assistant, user, assistant; expected exactly one"),
    "parting early": ("pref", {"chosen": said("q", "a", "b", "c"), "rejected": said("q", "z", "b", "c")},
                      "chosen: after the prompt comes assistant, user, assistant; expected exactly one"),
    "not a message": ("sft", {"messages": ["q"]}, "messages: turn 1 is q, expected {role: text, content: text}"),
    "a number as text": ("sft", {"prompt": 3, "completion": "x"}, "prompt: int, expected a text or a list"),
    "no answer": ("sft", {"prompt": "q"}, "in data.format.sft: has the keys prompt, expected one answer per row"),
    "no pair": ("pref", {"prompt": "q", "completion": "x"}, "in data.format.pref: has the keys prompt, completion"),
    "label of a word": ("pref", {"prompt": "q", "completion": "x", "label": "good"},
                        "label: 'good', expected true or false"),
    "bad id": ("sft", {"id": [1], "prompt": "q", "completion": "x"}, "id: [1], expected a text or a whole number"),
    "identical": ("pref", {"prompt": "q", "chosen": "x", "rejected": " x "}, "chosen and rejected are the same text"),
    "identical conversations": ("pref", {"chosen": said("q", "x"), "rejected": said("q", "x")},
                                "chosen and rejected are the same text"),
    "empty answer": ("sft", {"prompt": "q", "completion": ""}, "the answer is empty"),
    "half a surrogate": ("sft", {"prompt": "q", "completion": "x\udc80"}, "answer holds half a surrogate pair"),
}


@pytest.mark.parametrize("split, row, message", BAD.values(), ids=BAD)
def test_a_bad_row_is_told_with_its_line(tmp_path: Path, split: str, row: Any, message: str) -> None:
    answers = {"chosen": "x", "rejected": "y"} if split == "pref" else {"completion": "x"}
    file = write(tmp_path / "rows.jsonl", {"prompt": "fine", **answers}, row)
    with pytest.raises(UserError) as caught:
        jsonl.read(tmp_path, build(Settings, {split: file.name}))
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"{file}:2: {message}")


def test_all_problems_of_all_files_come_at_once(tmp_path: Path) -> None:
    sft = write(tmp_path / "s.jsonl", {"prompt": "q"}, {"id": "a", "prompt": "q", "completion": "x"})
    pref = write(tmp_path / "p.jsonl", {"prompt": "q", "chosen": "x", "rejected": "x"})
    with pref.open("ab") as file:
        file.write(b'{"prompt": "\xff"}\n{"prompt"')
    with sft.open("a") as text:
        text.write('{"id": "a", "prompt": "r", "completion": "x"}\n')
    with pytest.raises(UserError) as caught:
        jsonl.read(tmp_path, Settings(sft="s.jsonl", pref="p.jsonl"))
    assert [p.split(": ")[0] for p in caught.value.problems] == [
        f"{sft}:1", f"{pref}:1", f"{pref}:2", f"{pref}:3", f"{sft}:3"]


def test_identical_and_empty_rows_can_be_left_out_and_counted(tmp_path: Path) -> None:
    sides = [("x", "x"), ("", "x"), ("x", "y")]
    write(tmp_path / "p.jsonl", *({"prompt": f"q{x}{y}", "chosen": x, "rejected": y} for x, y in sides))
    made: Imported = jsonl.read(tmp_path, Settings(pref="p.jsonl", identical="drop", empty="drop"))
    assert sum(map(len, given.splits(made).values())) == 1
    assert made.dropped == {"chosen and rejected are the same text": 1, "the answer is empty": 1}


def test_pairs_and_labelled_answers_do_not_mix(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", PAIRS["plain"], {"prompt": "r", "completion": "x", "label": True})
    with pytest.raises(UserError, match=r":2: a labelled answer, but .*:1 is a pair; .*data\.format\.pref=FILE"):
        jsonl.read(file, Settings())


def test_every_missing_file_is_named_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        jsonl.files(tmp_path, Settings(sft="s.jsonl", pref="p*.jsonl"))
    assert [p.split(":")[0] for p in caught.value.problems] == ["data.format.sft", "data.format.pref"]
    with pytest.raises(UserError, match=r"data\.root: .*nowhere cannot be opened") as caught:
        jsonl.files(tmp_path / "nowhere", Settings(sft="s.jsonl", pref="p.jsonl"))
    assert len(caught.value.problems) == 1
    with pytest.raises(UserError, match=r"data\.format\.sft: data\.root is the file .*, expected the folder"):
        jsonl.files(write(tmp_path / "s.jsonl", {"prompt": "q"}), Settings(sft="s.jsonl"))


CALL = [{"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}]


def more(group: Group) -> list[Any]:
    """The further fields of every turn, the answers' at the end."""
    return [json.loads(turn.more or "{}") for turn in (*group.messages, *group.completions)]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_travels_with_its_answer(tmp_path: Path, key: str) -> None:
    answer = [{"role": "assistant", key: "two and three", "content": "5"}]
    group = one(tmp_path, "sft", {"messages": said("2 + 3?") + answer})
    assert texts(group) == (["2 + 3?"], ["5"]) and more(group) == [{}, {"reasoning_content": "two and three"}]
    pair = one(tmp_path, "pref", {"prompt": said("2 + 3?"), "chosen": answer, "rejected": bot("6")})
    assert more(pair) == [{}, {"reasoning_content": "two and three"}, {}]


def test_calls_of_tools_and_their_answers(tmp_path: Path) -> None:
    """Content may be null where a tool is called, and the called tool speaks before the assistant goes on."""
    rows = [*said("2 + 3?"), {"role": "assistant", "content": None, "tool_calls": CALL},
            {"role": "tool", "content": "5", "tool_call_id": "c1", "name": "add"}, *bot("It is 5")]
    group = one(tmp_path, "sft", {"messages": rows, "tools": [{"name": "add"}]})
    assert [m.role for m in group.messages] == ["user", "assistant", "tool"]
    assert more(group) == [{}, {"tool_calls": CALL}, {"tool_call_id": "c1", "name": "add"}, {}]
    assert json.loads(group.template) == {"tools": [{"name": "add"}]}
    call = one(tmp_path, "sft", {"messages": rows[:2]})
    assert texts(call) == (["2 + 3?"], [""]) and more(call) == [{}, {"tool_calls": CALL}]
    other = one(tmp_path, "sft", {"messages": rows})
    assert len({group.id, call.id, other.id}) == 3, "what the template is told is part of the id"


def test_a_system_column_and_variables_of_the_template(tmp_path: Path) -> None:
    row = {"system": "one word", "prompt": "q", "chosen": "a", "rejected": "b",
           "chat_template_kwargs": {"enable_thinking": False}}
    group = one(tmp_path, "pref", row)
    assert [(m.role, m.content) for m in group.messages] == [("system", "one word"), ("user", "q")]
    assert json.loads(group.template) == {"enable_thinking": False}
    assert one(tmp_path, "pref", {**row, "system": ""}).messages[0].role == "user"
    empty = one(tmp_path, "sft", {"messages": [{"role": "system", "content": ""}, *said("q", "a")]})
    assert texts(empty) == (["", "q"], ["a"])


TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train": True},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 1},
        {"role": "user", "content": "e"}, {"role": "assistant", "content": "f", "train": False}]


@pytest.mark.parametrize(("turns", "cut", "found"), [
    ("last", 4, [(["a", "b", "c"], ["d"])]),
    ("last", 6, [(["a", "b", "c"], ["d"])]),
    ("all", 6, [(["a"], ["b"]), (["a", "b", "c"], ["d"])]),
])
def test_answers_to_learn_from(tmp_path: Path, turns: str, cut: int, found: Any) -> None:
    """The last one or all of them, without those that are marked; an id of the row's own is numbered."""
    write(tmp_path / "rows.jsonl", {"id": "t", "messages": TALK[:cut]})
    read = jsonl.read(tmp_path, Settings(sft="rows.jsonl", turns=turns, shares=Shares(unlabeled=0, eval=0)))
    groups = given.splits(read)["sft"]
    assert [texts(group) for group in groups] == found
    assert [group.id for group in groups] == (["t"] if turns == "last" else ["t/1", "t/2"])


def test_a_row_without_an_answer_to_learn_from_is_counted(tmp_path: Path) -> None:
    untrained = [*said("q"), {"role": "assistant", "content": "a", "train": False}]
    write(tmp_path / "rows.jsonl", {"messages": untrained}, {"messages": said("r", "b")})
    read = jsonl.read(tmp_path, Settings(sft="rows.jsonl", shares=Shares(unlabeled=0, eval=0)))
    assert read.counts["sft"] == 1 and read.dropped == {jsonl.UNTRAINED: 1}


def test_keys_that_nothing_reads_are_counted_by_name(tmp_path: Path) -> None:
    row = {"prompt": said("q"), "chosen": bot("a"), "rejected": bot("b"), "source": "web", "messages": said("q", "a")}
    marked = {"messages": [*said("r"), {"role": "assistant", "content": "a", "train": True, "mood": "glad"}]}
    write(tmp_path / "rows.jsonl", row, {**row, "prompt": said("s")}, marked)
    read = jsonl.read(tmp_path, Settings())
    assert read.unread == {"source": 2, "messages": 2, "mood of a message": 1}
    flagged = {**row, "chosen": [{"role": "assistant", "content": "a", "train": False}]}
    write(tmp_path / "rows.jsonl", flagged)
    assert jsonl.read(tmp_path, Settings()).unread["train of a message"] == 1  # of a pair nothing would read it


@pytest.mark.parametrize(("row", "message"), [
    ({"messages": [*said("q"), {"role": "assistant", "content": "a", "weight": 0.5}]}, "turn 2 has weight 0.5"),
    ({"messages": [*said("q"), {"role": "assistant", "content": "a", "thinking": 3}]}, "turn 2 has reasoning 3"),
    ({"system": 3, "prompt": "q", "completion": "a"}, "system: '3', expected a text"),
    ({"system": "x", "messages": [{"role": "system", "content": "y"}, *said("q", "a")]}, "without a system turn"),
    ({"tools": "add", "prompt": "q", "completion": "a"}, "tools: add, expected a list of JSON schemas"),
    ({"chat_template_kwargs": {"tokenize": True}, "prompt": "q", "completion": "a"}, "chat_template_kwargs: "),
    ({"messages": [*said("q"), {"role": "tool", "content": "5"}, *bot("a")]}, "turn 2 is from tool, expected"),
    ({"messages": [*said("q"), {"role": "assistant", "content": "", "tool_calls": CALL}, *said("r", "a")]},
     "turn 3 is from user, expected tool"),
])
def test_a_field_that_cannot_be_is_told(tmp_path: Path, row: Any, message: str) -> None:
    write(tmp_path / "rows.jsonl", row)
    with pytest.raises(UserError) as error:
        jsonl.read(tmp_path, Settings())
    assert message in str(error.value)
