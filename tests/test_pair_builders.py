"""Pairs made of other data: what each builder changes and what it leaves, by hand."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path

import pytest

from pipeline import pair_builders
from pipeline.errors import UserError
from pipeline.pair_builders import arc, build, distance, hellaswag, metamath, repetition, swap, wrong

DATA = Path(os.environ.get("ALIGNLOOP_TEST_DATA", "nowhere"))
SOLVED = {"question": "How many?", "answer": "3 boxes of 9 are 3 * 9 = <<3*9=27>>27 eggs.\nShe sells 5: 27 - 5 = "
                                             "$<<27-5=22>>22\n#### 22"}


def test_metamath_spoils_one_intermediate_result_and_nothing_else():
    """27 is the only candidate: 22 is the answer's own last occurrence. Later uses of 27 stay."""
    (row,), why = metamath(SOLVED, random.Random(0))
    plain = "3 boxes of 9 are 3 * 9 = 27 eggs.\nShe sells 5: 27 - 5 = $22\n#### 22"
    before, after = plain.split("27", 1)
    assert why == "" and row["prompt"] == "How many?" and row["chosen"] == plain
    assert row["rejected"].startswith(before) and row["rejected"].endswith(after)
    other = row["rejected"][len(before):-len(after)]
    assert other != "27" and 18 <= int(other) <= 36


def test_metamath_takes_its_own_form_and_leaves_out_what_has_no_step():
    """The answer stands behind "The answer is:" there; 6.5 has one decimal and keeps it."""
    row = {"query": "q", "response": "It is 13 / 2 = 6.5 each, so 6.5 * 2 = 13. #### 13 The answer is: 13"}
    ((made,), _) = metamath(row, random.Random(1))
    changed = made["rejected"].split("13 / 2 = ")[1].split(" each")[0]
    assert changed != "6.5" and len(changed.partition(".")[2]) == 1 and made["rejected"].endswith("The answer is: 13")
    assert metamath({"question": "q", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"}, random.Random(0)) == (
        [], "no intermediate result")


@pytest.mark.parametrize(("number", "low", "high"), [("0", 1, 9), ("4", 0, 13), ("-3", -12, 6), ("1,234", 1111, 1357)])
def test_a_wrong_number_is_near_and_written_alike(number: str, low: int, high: int):
    made = {wrong(number, random.Random(seed)) for seed in range(200)}
    values = {int(one.replace(",", "")) for one in made}
    assert number not in made and min(values) >= low and max(values) <= high and len(values) > 5
    assert all(("," in one) == ("," in number) for one in made)


def test_choices_give_a_pair_for_each_wrong_one():
    row = {"query": "Question: Which?", "choices": ["a", "b", "c", "d"], "gold": 2}
    made, _ = arc(row, random.Random(0))
    assert [(one["chosen"], one["rejected"]) for one in made] == [("c", "a"), ("c", "b"), ("c", "d")]
    made, _ = hellaswag({"ctx": "He", "endings": ["runs.", "sits."], "label": "1"}, random.Random(0))
    assert made == [{"prompt": "He", "chosen": "sits.", "rejected": "runs."}]


def test_a_swap_moves_two_words_and_no_white_space():
    (row,), _ = swap({"prompt": "p", "chosen": "one  two\nthree"}, random.Random(3))
    words = row["rejected"].split()
    assert sorted(words) == ["one", "three", "two"] and row["rejected"] != "one  two\nthree"
    assert [c for c in row["rejected"] if c.isspace()] == [" ", " ", "\n"]
    assert swap({"prompt": "p", "chosen": "go go"}, random.Random(0)) == ([], "no two different words")


def test_continuations_are_whole_sentences_and_none_is_used_twice():
    """Pieces of at least 4 words: "A b c. D e!", "F g h i.", 'Said "j k l m."', and at the end one too short."""
    made, _ = repetition({"text": 'A b c. D e!\nF g h i. Said "j k l m." N o p q. R.'}, random.Random(0), words=4)
    assert made == [{"question": "A b c. D e!", "answer": "F g h i."},
                    {"question": 'Said "j k l m."', "answer": "N o p q."}]
    assert repetition({"text": "Too short."}, random.Random(0)) == ([], "too short")


def test_files_are_read_and_rows_named(tmp_path: Path):
    """Ids tell the pairs of one row apart behind "#"; the same seed gives the same rows; what is wrong has its line."""
    path = tmp_path / "a.jsonl.gz"
    rows = [{"query": "q", "choices": ["x", "y", "z"], "gold": 0}, {"query": "r", "choices": ["x", "y"], "gold": 1}]
    with gzip.open(path, "wt") as file:
        file.write("\n".join(map(json.dumps, rows)) + "\n")
    made, tally = build("arc", [path], 0)
    assert [one["id"] for one in made] == ["0#0", "0#1", "1"] and tally["rows"] == 2
    assert distance(made) == 1.0 and distance([{"question": "q", "answer": "a"}]) is None
    with pytest.raises(UserError, match=r"a.jsonl.gz:1: hellaswag takes no such row .* keys query, choices, gold"):
        build("hellaswag", [path], 0)
    (tmp_path / "t.txt").write_text(f"One. Two.\n{pair_builders.STORY_END}\nThree.\n")
    assert build("repetition", [tmp_path / "t.txt"], 0)[1] == {"rows": 2, "left out: too short": 2}


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ALIGNLOOP_TEST_DATA")
@pytest.mark.parametrize(("name", "file", "rows", "low", "high"), [
    ("metamath", "gsm8k/gsm8k.train.jsonl", 2500, 0.0, 0.08), ("arc", "arc/arc_challenge.train.jsonl", 2300, 0.75, 1.0),
    ("hellaswag", "hellaswag-sample/hellaswag_val.train.jsonl", 2100, 0.8, 1.0),
    ("swap", "gsm8k/gsm8k.test.jsonl", 590, 0.0, 0.2)])
def test_real_files_give_the_distances_of_the_paper(name: str, file: str, rows: int, low: float, high: float):
    """App. D: MetaMath 6.5 %, ARC 90 % of the tokens."""
    made, _ = build(name, [DATA / file], 0)
    found = distance(made)
    assert len(made) >= rows and found is not None and low < found < high
    assert all(one["chosen"] != one["rejected"] for one in made)
