"""data=files: every kind of file and place, what becomes of wrong rows, what is counted, and how splits are filled."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from pipeline import store
from pipeline.config import build
from pipeline.errors import UserError
from pipeline.formats import files
from pipeline.formats.splits import Imported
from tests import given

ROWS = [{"prompt": f"Say the number {i}", "chosen": f"{i}", "rejected": "no"} for i in range(40)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def load(root: Path | str, **settings: Any) -> Imported:
    return files.read(Path(root), build(files.Settings, settings))


def problems(root: Path | str, **settings: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(root, **settings)
    return caught.value.problems


def texts(made: Imported) -> list[tuple[str, tuple[str, ...]]]:
    return sorted((g.messages[-1].content, tuple(c.text for c in g.completions)) for _, g in made.groups())


def balanced(made: Imported) -> bool:
    return made.facts["rows"] + made.facts["further examples of a row"] == sum(
        made.counts.values()) + sum(made.dropped.values())


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def arrow(path: Path) -> Path:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    return path


def table_of_texts(path: Path, delimiter: str) -> Path:
    pa.csv.write_csv(pa.Table.from_pylist(ROWS), path, pa.csv.WriteOptions(delimiter=delimiter))
    return path


def parquet(path: Path) -> Path:
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), path)
    return path


MADE = {
    "jsonl": lambda root: put(root / "a.jsonl", JSONL),
    "list": lambda root: put(root / "a.json", json.dumps(ROWS, indent=1).encode()),
    "gzip": lambda root: put(root / "a.jsonl.gz", gzip.compress(JSONL)),
    "zstd": lambda root: put(root / "a.jsonl.zst", pa.compress(JSONL, codec="zstd", asbytes=True)),
    "xz": lambda root: put(root / "a.jsonl.xz", lzma.compress(JSONL)),
    "bzip2": lambda root: put(root / "a.jsonl.bz2", bz2.compress(JSONL)),
    "utf-16": lambda root: put(root / "a.jsonl", JSONL.decode().encode("utf-16")),
    "utf-8 with a mark": lambda root: put(root / "a.jsonl", codecs.BOM_UTF8 + JSONL),
    "parquet": lambda root: parquet(root / "train-00000-of-00001.parquet"),
    "arrow": lambda root: arrow(root / "data.arrow"),
    "csv": lambda root: table_of_texts(root / "a.csv", ","),
    "tsv": lambda root: table_of_texts(root / "a.tsv", "\t"),
    "nested": lambda root: put(root / "deep" / "er" / "a.jsonl", JSONL),
}


@pytest.mark.parametrize("kind", MADE)
def test_every_kind_of_file_gives_the_same_groups(kind, tmp_path):
    """Packed as it may be, in a folder with a file about the data that is none of them."""
    wanted = load(put(tmp_path / "plain" / "a.jsonl", JSONL))
    file = MADE[kind](tmp_path / kind) if (tmp_path / kind).mkdir() is None else None
    put(tmp_path / kind / "dataset_info.json", b'{"features": {}}')
    put(tmp_path / kind / "README.txt", b"What this is about, in many words of plain text.")
    for root in (file, tmp_path / kind):
        made = load(root)
        assert texts(made) == texts(wanted)
        assert made.counts == wanted.counts
        assert made.facts == {"rows": 40, "read as pairs": 40, "further examples of a row": 0}


def test_what_datasets_saved(tmp_path):
    import datasets

    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": table.select(range(30)), "test": table.select(range(30, 40))}).save_to_disk(
        str(tmp_path / "several"))
    assert len(texts(load(tmp_path / "one"))) == 40
    assert load(tmp_path / "several").counts["eval"] == 10
    assert load(tmp_path / "several", split="test").facts["rows"] == 10
    assert "has no split 'dev', it has train, test" in problems(tmp_path / "several", split="dev")[0]
    assert {path.suffix for path in files.files(tmp_path / "one", files.Settings())} == {".arrow", ".json"}


def test_a_workspace_beside_the_rows_is_no_data(tmp_path):
    """`align data show .` in the folder of the data makes its workspace there: what the store wrote is left alone."""
    (tmp_path / "rows.jsonl").write_bytes(JSONL)
    alone = texts(load(tmp_path))
    store.cached_hashes(tmp_path / "workspace", [tmp_path / "rows.jsonl"])
    made = tmp_path / "workspace" / "runs" / "data"
    made.mkdir(parents=True)
    (made / "events.jsonl").write_text('{"step": "data"}\n')
    assert (tmp_path / "workspace" / "file-hashes.json").is_file()
    assert files.files(tmp_path, files.Settings()) == [tmp_path / "rows.jsonl"]
    assert texts(load(tmp_path)) == alone


def test_a_text_is_lines_or_stories(tmp_path):
    lines = put(tmp_path / "l.txt", b"one two three\n\nfour five six seven\n")
    made = load(lines, prompt_words=1)
    assert (made.facts["rows"], made.dropped) == (3, {"an empty line": 1})
    stories = put(tmp_path / "s.txt", b"one two\nthree\n<|endoftext|>\nfour five\n<|endoftext|>\nsix seven\n")
    made = load(stories, prompt_words=1)
    assert made.facts["rows"] == 3
    assert sorted(g.messages[0].content for _, g in made.groups()) == ["four", "one", "six"]


@pytest.mark.parametrize(("name", "data", "problem"), [
    ("a.jsonl", b"", "is empty, expected one JSON object per line"),
    ("a.jsonl.gz", gzip.compress(JSONL, mtime=0)[:80], "cannot be read from here on (Compressed file ended before"),
    ("a.jsonl.zst", pa.compress(JSONL, codec="zstd", asbytes=True)[:80], "cannot be read from here on"),
    ("a.parquet", b"", "is empty, expected a file, a folder"),
    ("a.parquet", b"PAR1 and no more", "cannot be read from here on"),
    ("a.jsonl", b"\x80\x04pickled\x00", "is a pickle, expected a file"),
    ("a.jsonl", b"<!DOCTYPE html>\n" * 50, "is a web page, expected a file"),
    ("a.jsonl", b"a,b\nc,d\ne,f\n" * 50, "is a table of texts (CSV, TSV), expected one JSON object"),
    ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "the pointer of a file that git-lfs has not fetched"),
    ("a.json", json.dumps({"data": ROWS}, indent=1).encode(), "is one JSON object written over several lines"),
    ("a.csv", b"", "is empty, expected a header and rows"),
    ("a.csv", b"prompt,prompt\na,b\n", "two columns have one name"),
    ("a.txt", b"", "is empty, expected lines of text"),
    ("a.jsonl", b'{"prompt": "q", "completion": "x"}\n{"prom', ":2: half-written, the file ends inside this line"),
    ("a.json", b'[{"prompt": "q"}, {', "not JSON"),
    ("a.xlsx", b"PK\x03\x04", "is of a kind that is read"),
])
def test_a_wrong_file_is_one_line(name, data, problem, tmp_path):
    put(tmp_path / name, data)
    (told,) = problems(tmp_path)
    assert problem in told
    assert str(tmp_path) in told


@pytest.mark.parametrize(("text", "where"), [
    ('{"prompt": "q", "chosen": "a", "rejected": null}', "a.jsonl:2: rejected: null, expected a text"),
    ('{"prompt": "q", "chosen": "a"}', "a.jsonl:2: has no rejected"),
    ('{"foo": 1}', "a.jsonl:2: has the keys foo, which no shape has"),
    ('{"messages": [{"role": "assistant", "content": "a"}]}', "a.jsonl:2: prompt: has no prompt"),
    ('{"messages": [{"role": "user", "content": "q"}, {"role": "user", "content": "q"}]}', "turn 2 is from user"),
    ('["no object"]', "a.jsonl:2: list"),
    ('{"prompt": "\\ud800", "completion": "a"}', "half a surrogate pair"),
])
def test_wrong_rows_are_refused_by_line_or_left_out_and_counted(text, where, tmp_path):
    good = [json.dumps({"prompt": f"{i}", "completion": "a"}) for i in range(3)]
    file = put(tmp_path / "a.jsonl", "\n".join([good[0], text, *good[1:], text, ""]).encode())
    told = problems(file)
    assert len(told) == 2 and where in told[0] and ":5:" in told[1]
    made = load(file, on_bad_row="drop")
    assert [n for reason, n in made.dropped.items() if reason.startswith("wrong row")] == [2]
    assert made.facts["rows"] == 5 and balanced(made)
    assert str(tmp_path) not in str(made.dropped)


def test_duplicate_ids_are_named_and_may_be_dropped(tmp_path):
    rows = [{"id": 1, "prompt": "q", "completion": "a"}, {"id": 1, "prompt": "r", "completion": "a"}]
    file = put(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    (told,) = problems(file, needed=["sft"])
    assert f"{file}:2: id 'a/1' is used before at {file}:1" in told
    assert sum(load(file, on_bad_row="drop", needed=["sft"]).counts.values()) == 2


def test_a_line_of_ten_megabytes(tmp_path):
    long = json.dumps({"prompt": "q", "completion": "x" * 10_000_000})
    assert load(put(tmp_path / "a.jsonl", long.encode()), needed=["sft"]).counts["sft"] == 1


def test_rows_that_teach_nothing_are_left_out_and_counted(tmp_path):
    rows = [{"prompt": "q", "chosen": "a", "rejected": "a"}, {"prompt": "q", "chosen": "", "rejected": "a"},
            {"prompt": "q", "chosen": "a", "rejected": "b"}]
    made = load(put(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode()), needed=["pref"])
    assert made.dropped == {"chosen and rejected are the same text": 1, "the answer is empty": 1}
    assert made.counts["pref"] == 1 and balanced(made)


def test_what_is_put_right_is_counted(tmp_path):
    def talk(*texts: str) -> list[dict[str, str]]:
        roles = ("system", "user", "assistant")[-len(texts):]
        return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]

    rows = [{"prompt": "q ", "chosen": talk("q", "a"), "rejected": talk("q", "b")},
            {"prompt": "r", "chosen": talk("s", "r", "a"), "rejected": talk("s", "r", "b")},
            {"prompt": "t", "chosen": talk("t", "a"), "rejected": talk("t", "b")}]
    made = load(put(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert {key: n for key, n in made.facts.items() if key.startswith("put right")} == {
        "put right: a system turn that stood in the sides alone": 1,
        "put right: prompt and sides that differ in white space": 1}


def test_columns_of_other_names(tmp_path):
    rows = [{"Q": "q", "x": {"good": "a", "bad": "b"}, "prompt": "something else"}]
    file = put(tmp_path / "a.jsonl", json.dumps(rows[0]).encode())
    names = {"prompt": "Q", "chosen": "x.good", "rejected": "x.bad"}
    made = load(file, columns=names, needed=["pref"])
    assert texts(made) == [("q", ("a", "b"))]
    assert made.unread == {"x": 1}
    assert "data.columns.system: no row has a 'missing'" in problems(file, columns={**names, "system": "missing"})[0]


def test_keys_that_nothing_reads_are_named_and_counted(tmp_path):
    rows = [{"prompt": "q1", "response": "a", "source": "x"}, {"prompt": "q2", "response": "a", "source": None},
            {"prompt": "q3", "question": "other", "response": "a"}]
    made = load(put(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert made.unread == {"question": 1, "source": 1}


def test_pairs_labels_and_demonstrations_of_one_file(tmp_path):
    rows = [*({"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(4)),
            *({"prompt": f"l{i}", "completion": "a", "label": i % 2} for i in range(4)),
            *({"prompt": f"d{i}", "completion": "a", "label": None} for i in range(4))]
    file = put(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    made = load(file, needed=["sft", "pref"])
    assert (made.counts["sft"], made.counts["pref"]) == (4, 8)
    assert (made.kinds["pairs"], made.kinds["labels"]) == (4, 4)
    only = load(file, needed=["sft", "pref"], only="pairs")
    assert (only.kinds["pairs"], only.kinds["labels"]) == (4, 0)
    assert only.dropped == {"of the kind that data.format.only leaves out": 4}


def test_lists_become_groups_of_one_and_the_worse_or_a_pair(tmp_path):
    row = {"prompt": "q", "responses": ["b", "a", "c"], "scores": [2, 3, 1]}
    file = put(tmp_path / "a.jsonl", json.dumps(row).encode())
    (group,) = given.splits(load(file, needed=["pref"]))["pref"]
    assert [(c.text, c.scores) for c in group.completions] == [("a", {"given": 3.0}), ("b", {"given": 2.0}),
                                                               ("c", {"given": 1.0})]
    assert texts(load(file, needed=["pref"], lists="best_worst")) == [("q", ("a", "c"))]


def test_a_mixture_takes_shares_and_limits_of_its_sources(tmp_path):
    put(tmp_path / "a.jsonl", JSONL)
    put(tmp_path / "b.jsonl", JSONL.replace(b"Say the", b"Tell the"))
    made = load("", sources=[{"path": str(tmp_path / "a.jsonl"), "limit": 5},
                             {"path": str(tmp_path / "b.jsonl"), "weight": 0.5}])
    kept = [prompt for prompt, _ in texts(made)]
    assert len([one for one in kept if one.startswith("Say")]) == 5
    assert 8 < len([one for one in kept if one.startswith("Tell")]) < 32
    assert made.dropped["over the limit of its source"] == 1 and balanced(made)
    (told,) = problems("", sources=[{"path": str(tmp_path / "c.jsonl")}])
    assert "cannot be opened" in told
    assert [key for key, _ in files.Settings(sources=({"path": "x", "weight": 2},)).check()] == ["sources[0].weight"]


def test_files_of_ones_own_per_split(tmp_path):
    put(tmp_path / "a.jsonl", JSONL)
    put(tmp_path / "mine.jsonl", b'{"prompt": "Say the number 3"}\n{"prompt": "new"}\n')
    made = load(tmp_path, pref="a.jsonl", eval="mine.jsonl")
    assert (made.counts["eval"], made.overlap) == (2, 1)
    assert "in data.format.sft: has 2 answers, expected one answer" in problems(tmp_path, sft="a.jsonl")[0]


def test_only_the_splits_a_recipe_needs_and_one_prompt_in_each(tmp_path):
    """Five pairs: with the usual shares (10 : 10 : 20 : 0.8) evaluation would get none of them."""
    few = put(tmp_path / "a.jsonl", b"".join(JSONL.splitlines(keepends=True)[:5]))
    assert load(few, needed=["sft"]).counts == {"sft": 5, "pref": 0, "unlabeled": 0, "eval": 0}
    made = load(few, needed=["sft", "pref", "unlabeled", "eval"])
    assert min(made.counts.values()) >= 1 and sum(made.counts.values()) == 5
    assert load(few, needed=["pref", "eval"]).counts["pref"] >= 1


def test_symbols_count_in_a_prompt_and_all_turns_where_the_opening_is_shared(tmp_path):
    """"1 + 1" and "1 - 1" are two prompts; "hello" opens two conversations, a longer opening is one with its depths."""
    long = "Please write me a poem about the sea"
    rows = [{"prompt": "1 + 1"}, {"prompt": "1 - 1"}, {"prompt": " 1  +  1"}]
    for opening in ("hello", long):
        for end in ("a", "b"):
            rows.append({"prompt": [{"role": "user", "content": opening}, {"role": "assistant", "content": "x"},
                                    {"role": "user", "content": end}]})
    file = put(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    settings = build(files.Settings, {})
    keys = [entry.key for entry in files._entries(file, settings, files.Counter(), files.Problems(), files.Counter())]
    assert keys == ["1 + 1", "1 - 1", "1 + 1", "hello\x1fx\x1fa", "hello\x1fx\x1fb", long.lower(), long.lower()]


@pytest.mark.parametrize(("row", "text", "scores"), [
    ({"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 3, "score_rejected": 3},
     "chosen and rejected have the same score", (3.0, 3.0)),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "chosen_rating": 2, "rejected_rating": "4.5"},
     "the rejected answer has the higher score", (2.0, 4.5)),
    ({"prompt": "q", "output_1": "a", "output_2": "b", "preference": 1.5}, "a tie of two answers", (0.5, 0.5)),
    ({"prompt": "q", "responses": ["a", "b"], "scores": [2, 2]}, "no answer of the list is worse than the best",
     (2.0, 2.0)),
    ({"prompt": "q", "responses": ["a", "b", "c"], "scores": [2, 2, 1]}, "a list with an answer as good as the best",
     (2.0, 2.0, 1.0)),
])
def test_ties_and_reversed_pairs_are_dropped_or_kept_as_a_margin_and_counted(row, text, scores, tmp_path):
    """The margin is what the scores `given` of both sides differ by: nought, or below it."""
    file = put(tmp_path / "a.jsonl", json.dumps(row).encode())
    made = load(file, needed=["pref"])
    assert made.dropped == ({} if len(scores) == 3 else {text: 1}) and f"kept: {text}" not in made.facts
    made = load(file, needed=["pref"], ties="keep")
    assert made.facts[f"kept: {text}"] == 1 and not made.dropped
    (group,) = given.splits(made)["pref"]
    assert tuple(c.scores["given"] for c in group.completions) == scores


def test_score_columns_of_any_name(tmp_path):
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "how_good": 4, "judged": {"other": 1}}
    made = load(put(tmp_path / "a.jsonl", json.dumps(row).encode()), needed=["pref"],
                columns={"score_chosen": "how_good", "score_rejected": "judged.other"})
    (group,) = given.splits(made)["pref"]
    assert [c.scores["given"] for c in group.completions] == [4.0, 1.0] and made.unread == {"judged": 1}
