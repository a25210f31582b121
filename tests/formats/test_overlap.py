"""13 words in a row of an evaluation prompt within a training text, in any case and punctuation."""

from __future__ import annotations

from pathlib import Path

from pipeline import tables
from pipeline.formats.overlap import grams, shared
from pipeline.records import Completion, Group, Message

ASKED = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def group(name: str, prompt: str, *answers: str) -> Group:
    return Group(name, (Message("user", prompt),), tuple(map(Completion, answers)))


def test_runs_of_thirteen_words():
    assert [gram[0] for gram in grams(ASKED)] == ["one", "two"]
    assert list(grams("one two three")) == []


def test_groups_that_share_a_run_are_counted_by_split(tmp_path: Path):
    within = ASKED.upper().replace(" ", ", ")
    tables.write(tmp_path / "eval", [group("e", ASKED), group("short", "what is this")])
    tables.write(tmp_path / "sft", [group("a", "q", f"I say {within}!"), group("b", "what is this", "no")])
    tables.write(tmp_path / "pref", [group("c", "q", "no", "no " + ASKED[:40])])
    tables.write(tmp_path / "unlabeled", [group("d", f"Repeat: {within}")])
    assert shared(tmp_path) == {"sft groups with 13 words of an evaluation prompt": 1,
                                "unlabeled groups with 13 words of an evaluation prompt": 1}
