"""Anthropic HH transcripts: the turns come out as they were spoken, irregular rows are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.formats import hh
from pipeline.formats.hh import Irregular, Settings, transcript
from pipeline.formats.splits import Limits
from pipeline.records import Message
from tests import given


def say(*texts: str) -> str:
    return "".join(f"\n\n{'Assistant' if i % 2 else 'Human'}: {text}" for i, text in enumerate(texts))


def pair(*texts: str) -> dict[str, str]:
    """A pair whose last two texts are the chosen and the rejected answer."""
    return {"chosen": say(*texts[:-1]), "rejected": say(*texts[:-2], texts[-1])}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_transcript_becomes_messages_without_the_white_space_around_them() -> None:
    text = "\n\nHuman: one\n\nAssistant:  two\n\nwith a paragraph\n\nHuman: three \n\nAssistant: four"
    assert transcript(text) == [Message("user", "one"), Message("assistant", "two\n\nwith a paragraph"),
                                Message("user", "three"), Message("assistant", "four")]
    assert transcript("\n\nHuman: q\n\nAssistant:")[-1] == Message("assistant", "")


@pytest.mark.parametrize("text, reason", [
    ("\n\nHuman: a\n\nHuman: b\n\nAssistant: c", hh.TURNS),
    ("\n\nHuman: a\n\nAssistant: b\n\nAssistant: c", hh.TURNS),
    ("\n\nHuman: a", hh.TURNS),
    ("\n\nHuman: a\n\nAssistant: \n\nHuman: b\n\nAssistant: c", hh.EMPTY),
    ("\n\nHuman: a\n\nAssistant: Human: I am fine", hh.INSIDE),
    ("\n\nHuman: a\n\nAssistant: No. \n Humans: why not?", hh.INSIDE),
])
def test_irregular_transcripts(text: str, reason: str) -> None:
    with pytest.raises(Irregular, match=reason):
        transcript(text)


def test_a_word_that_only_looks_like_a_speaker_is_fine() -> None:
    assert transcript(say("Is a human: being?", "The Assistant said: yes"))[1].content == "The Assistant said: yes"


def test_pairs_prompts_and_test_files_give_the_four_splits(tmp_path: Path) -> None:
    write(tmp_path / "base.train.jsonl", *(pair(f"q{i}", "hm?", "go on", "good", "bad") for i in range(40)))
    write(tmp_path / "prompts.train.jsonl", *({"prompt": say(f"u{i}", "")} for i in range(9)))
    write(tmp_path / "base.test.jsonl", pair("e0", "good", "bad"))
    write(tmp_path / "prompts.test.jsonl", {"prompt": say("e1", "")})
    made = hh.read(tmp_path, Settings())
    assert made.dropped == {}
    assert len(given.splits(made)["sft"]) + len(given.splits(made)["pref"]) == 40
    group = given.splits(made)["pref"][0]
    assert [m.role for m in group.messages] == ["user", "assistant", "user"]
    assert [m.content for m in group.messages][1:] == ["hm?", "go on"]
    assert [c.text for c in group.completions] == ["good", "bad"]
    assert group.dataset == "base.train"
    assert {c.text for g in given.splits(made)["sft"] for c in g.completions} == {"good"}
    assert [g.messages[-1].content for g in given.splits(made)["unlabeled"]] == [f"u{i}" for i in range(9)]
    assert {g.messages[0].content for g in given.splits(made)["eval"]} == {"e0", "e1"}
    assert not any(g.completions for g in (*given.splits(made)["unlabeled"], *given.splits(made)["eval"]))


def test_two_depths_of_one_conversation_stay_in_one_split(tmp_path: Path) -> None:
    """Pairs of one opening, 1 and 3 turns deep: demonstrations and pairs share no opening."""
    rows = [pair(*texts) for i in range(60) for texts in ((f"q{i}", "x", "y"), (f"q{i}", "x", "and?", "good", "bad"))]
    made = hh.read(write(tmp_path / "a.jsonl", *rows), Settings())
    openings = {split: {g.messages[0].content for g in groups} for split, groups in given.splits(made).items()}
    assert openings["sft"]
    assert openings["pref"]
    assert not openings["sft"] & openings["pref"]


IRREGULAR = {
    hh.DIFFER: {"chosen": say("q", "a", "b", "c"), "rejected": say("q", "z", "b", "d")},
    hh.IDENTICAL: pair("q", "same", "same "),
    hh.EMPTY: pair("q", "", "b"),
    hh.TURNS: {"chosen": say("q", "a"), "rejected": say("q", "a", "b")},
    hh.INSIDE: pair("q", "Human: a", "b"),
}


def test_irregular_rows_are_left_out_by_reason_or_are_problems(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *IRREGULAR.values(), pair("fine", "a", "b"))
    made = hh.read(file, Settings())
    assert made.dropped == dict.fromkeys(IRREGULAR, 1)
    assert sum(map(len, given.splits(made).values())) == 1
    with pytest.raises(UserError) as caught:
        hh.read(file, Settings(irregular="error"))
    way_out = "data.format.irregular=drop leaves such rows out"
    assert caught.value.problems == [f"{file}:{n}: {reason}; {way_out}" for n, reason in enumerate(IRREGULAR, 1)]


@pytest.mark.parametrize("row, message", [
    ({"chosen": "Hello", "rejected": say("q", "a")}, "chosen: begins with 'Hello', expected a transcript"),
    ({"chosen": say("q", "a"), "rejected": 3}, "rejected: int, expected a transcript"),
    ({"prompt": say("q", "a")}, "prompt: ends with an answer"),
    ({"instruction": "x"}, "has the keys instruction, expected chosen and rejected, or prompt"),
    (pair("q\ud800", "a", "b"), "a turn holds half a surrogate pair"),
])
def test_rows_of_another_kind_are_problems(tmp_path: Path, row: Any, message: str) -> None:
    file = write(tmp_path / "a.jsonl", pair("fine", "a", "b"), row)
    with pytest.raises(UserError) as caught:
        hh.read(file, Settings())
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"{file}:2: {message}")


def test_limits_are_kept(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *(pair(f"q{i}", "a", "b") for i in range(200)))
    made = hh.read(file, Settings(limits=Limits(sft=5, pref=6, unlabeled=7, eval=1)))
    assert {split: len(groups) for split, groups in given.splits(made).items()} == {
        "sft": 5, "pref": 6, "unlabeled": 7, "eval": 1}


def test_a_folder_without_data_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.format\.files: no file in .* matches"):
        hh.files(tmp_path, Settings())


def test_keys_that_nothing_reads_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {**pair("a", "b", "c"), "source": "x"}, pair("d", "e", "f"))
    assert hh.read(tmp_path, hh.Settings()).unread == {"source": 1}
