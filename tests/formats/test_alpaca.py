"""Instruction files of several makers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.formats import alpaca
from pipeline.formats.alpaca import Settings
from pipeline.formats.splits import Shares
from pipeline.records import Group
from tests import given

ALL = Settings(shares=Shares(unlabeled=0, eval=0))


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def one(tmp_path: Path, row: Any, split: str = "sft") -> Group:
    """The group a row becomes; beside a pair there is a demonstration, so that `sft` is not made from the pair."""
    others = [{"instruction": "Another.", "output": "x"}] if split == "pref" else []
    (group,) = given.splits(alpaca.read(write(tmp_path / "a.jsonl", row, *others), ALL))[split]
    return group


def turns(group: Group) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in group.messages]


@pytest.mark.parametrize("row", [
    {"instruction": "Add.", "input": "1 2", "output": "3"},
    {"instruction": "Add.\n", "input": " 1 2", "response": "3 "},
    {"id": "seed_1", "name": "add", "instruction": "Add.", "instances": [{"input": "1 2", "output": "3"}]},
])
def test_instruction_and_input_are_one_user_turn(tmp_path: Path, row: Any) -> None:
    group = one(tmp_path, row)
    assert turns(group) == [("user", "Add.\n\n1 2")]
    assert [c.text for c in group.completions] == ["3"]


@pytest.mark.parametrize("nothing", ["", "  ", "Noinput", "<noinput>", "No Input", None])
def test_no_input_in_all_its_spellings(tmp_path: Path, nothing: Any) -> None:
    assert turns(one(tmp_path, {"instruction": "Sing.", "input": nothing, "output": "La"})) == [("user", "Sing.")]


def test_each_instance_is_a_demonstration(tmp_path: Path) -> None:
    row = {"instruction": "Add.", "instances": [{"input": "1 2", "output": "3"}, {"input": "2 2", "output": "4"}]}
    made = alpaca.read(write(tmp_path / "a.jsonl", row), ALL)
    assert [g.completions[0].text for g in given.splits(made)["sft"]] == ["3", "4"]


def test_system_and_history_come_first(tmp_path: Path) -> None:
    row = {"system": "Be kind.", "history": [["Hi", "Hello"]], "instruction": "Bye", "output": "Bye!"}
    roles = ("system", "user", "assistant", "user")
    assert turns(one(tmp_path, row)) == list(zip(roles, ("Be kind.", "Hi", "Hello", "Bye"), strict=True))


def test_pairs(tmp_path: Path) -> None:
    sides = {"chosen": {"from": "gpt", "value": "good"}, "rejected": {"from": "gpt", "value": "bad"}}
    row = {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}], **sides}
    group = one(tmp_path, row, "pref")
    assert turns(group) == [("system", "s"), ("user", "q")]
    assert [c.text for c in group.completions] == ["good", "bad"]
    group = one(tmp_path, {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"}, "pref")
    assert [c.text for c in group.completions] == ["good", "bad"]


def test_a_conversation_is_a_demonstration(tmp_path: Path) -> None:
    group = one(tmp_path, {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]})
    assert (turns(group), group.completions[0].text) == ([("user", "q")], "a")


def test_a_json_list_is_read(tmp_path: Path) -> None:
    (tmp_path / "alpaca_data.json").write_text(json.dumps([{"instruction": "q", "input": "", "output": "a"}], indent=4))
    assert len(given.splits(alpaca.read(tmp_path, ALL))["sft"]) == 1


def test_demonstrations_alone_give_no_pairs_but_prompts(tmp_path: Path) -> None:
    rows = [{"instruction": f"q{i}", "input": "", "output": "a"} for i in range(300)]
    made = alpaca.read(write(tmp_path / "a.jsonl", *rows), Settings())
    assert given.splits(made)["pref"] == ()
    assert len(given.splits(made)["sft"]) > len(given.splits(made)["unlabeled"]) > len(given.splits(made)["eval"]) > 0


def test_labelled_rows_are_counted(tmp_path: Path) -> None:
    rows = [{"messages": [], "label": True}, {"instruction": "q", "output": "a"}]
    made = alpaca.read(write(tmp_path / "a.jsonl", *rows), ALL)
    assert made.dropped == {alpaca.LABELLED: 1}


GPT = {"from": "gpt", "value": "a"}
BAD = {
    "other keys": ({"text": "q"}, "has no instruction, found the keys text; expected instruction, input and output"),
    "no output": ({"instruction": "q"}, "output: None, expected a text"),
    "empty instruction": ({"instruction": " ", "output": "a"}, "prompt: turn 1 (user) is empty"),
    "empty answer": ({"instruction": "q", "output": " "}, "the answer is empty, expected a text; data.format.empty="),
    "identical": ({"instruction": "q", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same text"),
    "no rejected": ({"instruction": "q", "chosen": "a"}, "rejected: None, expected a text"),
    "no instances": ({"instruction": "q", "instances": []}, "instances: expected a list"),
    "bad instance": ({"instruction": "q", "instances": ["a"]}, "instances: number 1 is a, expected {input, output}"),
    "bad history": ({"instruction": "q", "output": "a", "history": [["x"]]}, "history: [['x']], expected a list of"),
    "bad speaker": ({"conversations": [{"from": "bing", "value": "q"}], "chosen": GPT, "rejected": GPT},
                    "conversations turn 1: {'from': 'bing', 'value': 'q'}, expected {from: human | gpt | system"),
    "answer by human": ({"conversations": [{"from": "human", "value": "q"}], "chosen": GPT, "rejected":
                         {"from": "human", "value": "b"}}, "rejected: is from user, expected gpt"),
    "nobody answers": ({"conversations": [{"from": "human", "value": "q"}]}, "conversations: ends without an answer"),
    "wrong turns": ({"conversations": [GPT, GPT]}, "prompt: turn 1 is from assistant, expected user"),
    "half a surrogate": ({"instruction": "q", "output": "\udc80"}, "the answer holds half a surrogate pair"),
}


@pytest.mark.parametrize("row, message", BAD.values(), ids=BAD)
def test_a_bad_row_is_told_with_its_line(tmp_path: Path, row: Any, message: str) -> None:
    file = write(tmp_path / "a.jsonl", {"instruction": "fine", "output": "a"}, row)
    with pytest.raises(UserError) as caught:
        alpaca.read(file, ALL)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"{file}:2: {message}")


def test_faulty_answers_can_be_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"instruction": "q", "output": ""}, {"instruction": "r", "chosen": "a", "rejected": "a"}]
    made = alpaca.read(write(tmp_path / "a.jsonl", *rows), Settings(empty="drop", identical="drop"))
    assert made.dropped == {"the answer is empty": 1, "chosen and rejected are the same text": 1}


def test_all_answers_of_a_conversation_can_be_learnt_from(tmp_path: Path) -> None:
    speakers = ("human", "gpt", "human", "gpt")
    row = {"system": "Be kind.", "tools": "[]", "conversations": [
        {"from": who, "value": text} for who, text in zip(speakers, "abcd", strict=True)]}
    file = write(tmp_path / "a.jsonl", row)
    made = alpaca.read(file, Settings(turns="all", shares=Shares(unlabeled=0, eval=0)))
    assert [(len(g.messages), g.completions[0].text) for g in given.splits(made)["sft"]] == [(2, "b"), (4, "d")]
    assert made.unread == {"tools": 1}
    (last,) = given.splits(alpaca.read(file, ALL))["sft"]
    assert turns(last)[0] == ("system", "Be kind.") and last.completions[0].text == "d"
