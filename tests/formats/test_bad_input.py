"""Bad input of every shape: one clear line that names the file and the row, or rows that are counted."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.formats.test_files import balanced, load, problems, put

# Without that key they are rows of prompts, and the key of another name is one that is not read.
PROMPTS = ("demonstrations", "labelled answers", "judged pairs", "choices", "scored lists")
U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
# A good row of each shape, and the key that it cannot do without.
SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "pairs": ({"prompt": "q", "chosen": "a", "rejected": "b"}, "rejected"),
    "conversational pairs": ({"chosen": [U, A], "rejected": [U, {**A, "content": "b"}]}, "rejected"),
    "demonstrations": ({"prompt": "q", "completion": "a"}, "completion"),
    "conversations": ({"messages": [U, A]}, "messages"),
    "ShareGPT": ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "conversations"),
    "Alpaca": ({"instruction": "q", "input": "", "output": "a"}, "instruction"),
    "labelled answers": ({"prompt": "q", "completion": "a", "label": True}, "completion"),
    "ranked lists": ({"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]}, "prompt"),
    "scored lists": ({"prompt": "q", "responses": ["a", "b"], "scores": [2, 1]}, "responses"),
    "judged pairs": ({"instruction": "q", "output_1": "a", "output_2": "b", "preference": 1}, "output_1"),
    "solutions": ({"question": "q", "answer": "so #### 2"}, "question"),
    "choices": ({"query": "q", "choices": ["a", "b"], "gold": 0}, "gold"),
    "benchmark questions": ({"question_id": "q", "turns": ["q"]}, "turns"),
    "plain text": ({"text": "one two three"}, "text"),
    "trees": ({"message_tree_id": "t", "prompt": {"text": "q", "role": "prompter", "replies": [
        {"text": "a", "role": "assistant", "rank": 0}, {"text": "b", "role": "assistant", "rank": 1}]}}, "prompt"),
}


def several(row: dict[str, Any], number: int = 3) -> list[dict[str, Any]]:
    return [json.loads(json.dumps(row).replace('"q"', f'"question {i}"')) for i in range(number)]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    return put(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


@pytest.mark.parametrize("name", SHAPES)
def test_a_null_or_another_name_where_the_row_needs_a_value(name: str, tmp_path: Path) -> None:
    """Named by line, all at once, with the key or the keys that the row has; with on_bad_row=drop counted."""
    row, key = SHAPES[name]
    renamed = {("wrong" if one == key else one): value for one, value in row.items()}
    good = several(row)
    file = jsonl(tmp_path / "a.jsonl", [good[0], {**row, key: None}, good[1], renamed, good[2]])
    told, still = problems(file, prompt_words=1), name in PROMPTS
    assert [one.partition(": ")[0] for one in told] == [f"{file}:2", f"{file}:4"][:1 if still else 2]
    assert all(key in one or "wrong" in one or "prompt" in one for one in told) and max(map(len, told)) < 400
    made = load(file, on_bad_row="drop", prompt_words=1)
    assert sum(n for reason, n in made.dropped.items() if reason.startswith("wrong row")) == 2 - still
    assert made.unread.get("wrong", 0) == still
    assert made.facts["rows"] == 5 and balanced(made)


@pytest.mark.parametrize("name", SHAPES)
def test_a_file_that_breaks_off(name: str, tmp_path: Path) -> None:
    """Truncated gzip, half a line: what could be read is no data set."""
    whole = "".join(json.dumps(row) + "\n" for row in several(SHAPES[name][0], 400)).encode()
    (told,) = problems(put(tmp_path / "a.jsonl.gz", gzip.compress(whole, mtime=0)[:-40]), prompt_words=1)
    assert told.startswith(f"{tmp_path}/a.jsonl.gz:") and "cannot be read from here on" in told
    (told,) = problems(put(tmp_path / "b.jsonl", whole[:-9]), prompt_words=1)
    assert told.startswith(f"{tmp_path}/b.jsonl:400: half-written")


@pytest.mark.parametrize("name", SHAPES)
def test_duplicate_ids_are_named_with_both_places(name: str, tmp_path: Path) -> None:
    rows = [{**row, "id": "same"} for row in several(SHAPES[name][0], 2)]
    file = jsonl(tmp_path / "a.jsonl", rows)
    told = problems(file, prompt_words=1)
    assert told and all(f"{file}:2: id 'a/same" in one and f"is used before at {file}:1" in one for one in told)


@pytest.mark.parametrize("name", SHAPES)
def test_a_row_of_ten_megabytes_is_a_row(name: str, tmp_path: Path) -> None:
    row = json.loads(json.dumps(SHAPES[name][0]).replace('"q"', json.dumps("word " * 2_000_000)))
    row = {"text": "word " * 2_000_000} if name == "plain text" else row
    made = load(jsonl(tmp_path / "a.jsonl", [row]), prompt_words=1)
    assert sum(made.counts.values()) >= 1 and balanced(made)


@pytest.mark.parametrize(("row", "problem"), [
    ({"messages": [A, U, A]}, "turn 1 is from assistant, expected user"),
    ({"messages": [U, U, A]}, "turn 2 is from user, expected assistant"),
    ({"messages": [{**U, "role": "narrator"}, A]}, "turn 1 has role 'narrator', expected one of"),
    ({"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
     "turn 1 is from assistant, expected user"),
    ({"chosen": [A, U, A], "rejected": [A, U, {**A, "content": "b"}]}, "turn 1 is from assistant, expected user"),
    ({"prompt": [A], "completion": "a"}, "turn 1 is from assistant, expected user"),
    ({"prompt": [A], "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]}, "turn 1 is from assistant"),
    ({"prompt": "q", "completion": [U], "label": True}, "completion: ends with user, expected the assistant's turn"),
    ({"message_tree_id": "t", "prompt": {"text": "q", "role": "assistant", "replies": [
        {"text": "a", "role": "prompter", "replies": []}]}}, "has no prompt, expected at least one user turn"),
    ({"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b"}]}, "answers[2]: has no rank and no score"),
    ({"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": "x"}]}, "a finite number"),
    ({"prompt": "q", "responses": ["a", "b"], "scores": [1.0, float("nan")]}, "score: float 'nan', expected a"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": float("inf"), "score_rejected": 1},
     "score_chosen: float 'inf', expected a finite number"),
    ({"instruction": "q", "output_1": "a", "output_2": "b", "preference": float("nan")}, "preference: float 'nan'"),
    ({"prompt": "q", "completion": "a", "label": float("nan")}, "label: nan, expected true or false"),
])
def test_roles_ranks_and_scores_that_are_wrong(row: dict[str, Any], problem: str, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [*several(SHAPES["pairs"][0]), row])
    (told,) = problems(file)
    assert told.startswith(f"{file}:4: ") and problem in told


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.parquet", "a.arrow", "a.jsonl.gz"])
def test_files_of_no_bytes(name: str, tmp_path: Path) -> None:
    (told,) = problems(put(tmp_path / name, b""))
    assert told.startswith(f"{tmp_path / name}: is empty") or "cannot be read from here on" in told


def test_a_folder_where_a_file_is_meant_and_a_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    (told,) = problems(tmp_path / "a.jsonl")
    assert told.startswith(f"data.root: no file in {tmp_path}/a.jsonl is of a kind that is read")
    jsonl(tmp_path / "a.jsonl" / "b.jsonl", several(SHAPES["pairs"][0]))
    assert load(tmp_path / "a.jsonl").facts["rows"] == 3
    (told,) = problems(tmp_path / "c.jsonl")
    assert told.startswith(f"data.root: {tmp_path}/c.jsonl cannot be opened (No such file or directory)")


def test_a_nested_folder_of_many_formats(tmp_path: Path) -> None:
    """Every file is read by what it is; one that is broken is one line, beside the wrong rows of the others."""
    rows = several(SHAPES["demonstrations"][0])
    jsonl(tmp_path / "x" / "a.jsonl", rows)
    put(tmp_path / "x" / "y" / "b.json", json.dumps(several(SHAPES["labelled answers"][0])).encode())
    written = io.StringIO()
    csv.writer(written).writerows([["prompt", "chosen", "rejected"], ["c", "a", "b"]])
    put(tmp_path / "z" / "c.csv", written.getvalue().encode())
    pa.parquet.write_table(pa.Table.from_pylist(several(SHAPES["scored lists"][0])), tmp_path / "z" / "d.parquet")
    put(tmp_path / ".cache" / "e.jsonl", b"no data")
    made = load(tmp_path)
    assert {key: n for key, n in made.facts.items() if key.startswith("read as")} == {
        "read as demonstrations": 3, "read as labelled answers": 3, "read as pairs": 1, "read as ranked lists": 3}
    put(tmp_path / "x" / "f.parquet", b"PAR1 no more")
    put(tmp_path / "x" / "g.jsonl", b'{"prompt": "q", "completion": null}\n')
    told = problems(tmp_path)
    assert len(told) == 2 and "f.parquet:1: cannot be read" in told[0] and "g.jsonl:1: completion: null" in told[1]
