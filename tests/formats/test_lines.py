"""Rows from files: every problem has its file and line, and all of them come at once."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from pipeline.errors import Problems, UserError
from pipeline.formats import lines


def read(file: Path) -> tuple[list[lines.Row], list[str]]:
    problems = Problems()
    rows = list(lines.rows([file], problems))
    return rows, problems.shown


def test_a_line_ends_with_a_newline_and_nothing_else(tmp_path: Path) -> None:
    """U+2028 and U+0085 inside a text are no line ends; blank lines are skipped, a carriage return is no content."""
    file = tmp_path / "a.jsonl"
    file.write_bytes('{"t": "one\u2028two\u0085three"}\r\n\n{"t": "four"}'.encode())
    rows, problems = read(file)
    assert [row.data["t"] for row in rows] == ["one\u2028two\u0085three", "four"]
    assert [row.where for row in rows] == [f"{file}:1", f"{file}:3"]
    assert problems == []


def test_gzip_is_known_by_its_name_or_its_first_bytes(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "a.jsonl"):
        (tmp_path / name).write_bytes(gzip.compress(b'{"t": 1}\n'))
        rows, problems = read(tmp_path / name)
        assert ([row.data for row in rows], problems) == ([{"t": 1}], [])


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_json_may_be_one_list_of_objects(tmp_path: Path, name: str) -> None:
    data = json.dumps([{"t": 1}, {"t": 2}], indent=1).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    rows, problems = read(tmp_path / name)
    assert [(row.where, row.data["t"]) for row in rows] == [
        (f"{tmp_path / name}:row 1", 1), (f"{tmp_path / name}:row 2", 2)]
    assert problems == []


def test_json_may_be_lines_too_and_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"t": 1}\n{"t": 2}\n')
    rows, problems = read(tmp_path / "a.json")
    assert ([row.data["t"] for row in rows], problems) == ([1, 2], [])


BAD = {
    "empty": (b"", ": is empty"),
    "only blank lines": (b"\n\n", ": is empty"),
    "half-written": (b'{"t": 1}\n{"t": "on', ":2: half-written, the file ends inside this line"),
    "not JSON": (b'{"t": 1}\n{t: 2}\n', ":2: not JSON"),
    "not UTF-8": ('{"t": "caf\u00e9"}\n'.encode("latin-1"), ":1: byte 11 of the line is not UTF-8"),
    "a list as a row": (b'{"t": 1}\n[1, 2]\n', ":2: list '[1, 2]', expected a JSON object"),
    "too deep": (b"[" * 100_000 + b"\n", ":1: not JSON"),
}


@pytest.mark.parametrize("content, message", BAD.values(), ids=BAD)
def test_bad_content_is_named_by_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    _, problems = read(tmp_path / "a.jsonl")
    assert len(problems) == 1
    assert problems[0].startswith(f"{tmp_path / 'a.jsonl'}{message}")


def test_bad_json_lists_are_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'[\n{"t": 1},\n{"t": \n')
    assert read(tmp_path / "a.json")[1][0].startswith(f"{tmp_path / 'a.json'}:4: not JSON")
    (tmp_path / "b.json").write_bytes('[\n{"t": "caf\u00e9"}]'.encode("latin-1"))
    assert read(tmp_path / "b.json")[1][0].startswith(f"{tmp_path / 'b.json'}:2: byte 13 of the file is not UTF-8")


LISTS = {
    "nothing": ("[]", [], "is empty"),
    "nothing, spaced": (" [ \n ] ", [], "is empty"),
    "numbers": ("[1, 2.5e3]", [], "int '1'"),
    "more behind it": ('[{"t": 1}] x', [1], "not JSON (Extra data)"),
    "no comma": ('[{"t": 1} {"t": 2}]', [1], "not JSON (Expecting ',' delimiter)"),
    "two commas": ('[{"t": 1},, {"t": 2}]', [1], "not JSON ("),
    "a comma last": ('[{"t": 1},]', [1], "not JSON ("),
    "no end": ('[{"t": 1}', [], "not JSON (Expecting ',' delimiter)"),
    "nested": ('[{"t": [1, {"u": "]"}]}, {"t": "\u20ac,"}]', [[1, {"u": "]"}], "\u20ac,"], None),
    "a byte order mark inside": ("[{\"t\": \"\ufeff\"}]", ["\ufeff"], None),
}


@pytest.mark.parametrize("piece", [1, 3, 1 << 16])
@pytest.mark.parametrize("text, values, message", LISTS.values(), ids=LISTS)
def test_a_list_is_read_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, values: list, message: str | None, piece: int
) -> None:
    """Wherever the pieces are cut: the good rows before an error, and the error as if the file were read whole."""
    monkeypatch.setattr(lines, "_PIECE", piece)
    (tmp_path / "a.json").write_text(text)
    rows, problems = read(tmp_path / "a.json")
    assert [row.data["t"] for row in rows] == values
    assert [message in problem for problem in problems[:1]] == ([] if message is None else [True])


def test_a_long_list_is_not_held(tmp_path: Path) -> None:
    """20,000 objects, 20 MB: reading them one by one takes less than 2 MB of Python objects."""
    (tmp_path / "a.json").write_text("[" + ",\n".join(json.dumps({"t": f"{i} " * 150}) for i in range(20_000)) + "]")
    tracemalloc.start()
    number = sum(1 for _ in lines.rows([tmp_path / "a.json"], Problems()))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number == 20_000 and most < 2 << 20


def test_good_rows_before_and_after_a_bad_one_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"t": 1}\nx\n{"t": 3}\n\xff\n')
    rows, problems = read(tmp_path / "a.jsonl")
    assert [row.data["t"] for row in rows] == [1, 3]
    assert [p.split(": ")[0] for p in problems] == [f"{tmp_path / 'a.jsonl'}:2", f"{tmp_path / 'a.jsonl'}:4"]


def test_a_gzip_file_cut_in_two_is_a_problem(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b'{"t": "%d"}\n' % (i * 7919 % 10007) for i in range(20_000)))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    rows, problems = read(tmp_path / "a.jsonl.gz")
    assert 0 < len(rows) < 20_000
    assert len(problems) == 1
    assert problems[0].startswith(f"{tmp_path / 'a.jsonl.gz'}:{len(rows) + 1}: cannot be read from here on")


def test_a_file_that_is_no_gzip_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b'{"t": 1}\n')
    assert "cannot be read from here on (Not a gzipped file" in read(tmp_path / "a.jsonl.gz")[1][0]


def test_an_unreadable_file_is_a_problem(tmp_path: Path) -> None:
    """A process's own memory is a file that exists and cannot be read from its start, not even by root."""
    if not Path("/proc/self/mem").exists():
        pytest.skip("needs Linux's /proc")
    (tmp_path / "a.jsonl").symlink_to("/proc/self/mem")
    assert read(tmp_path / "a.jsonl")[1] == [
        f"{tmp_path / 'a.jsonl'}:1: cannot be read from here on (Input/output error), expected a whole, readable file; "
        "fetch or copy it again"]


def test_find_says_which_key_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.jsonl.gz").touch()
    (tmp_path / ".hidden.jsonl").touch()
    found = lines.find(tmp_path, "**/*.json*", "data.format.files", "rows")
    assert found == [tmp_path / "b.jsonl", tmp_path / "sub" / "a.jsonl.gz"]
    assert lines.find(tmp_path / "b.jsonl", "x", "data.format.files", "rows") == [tmp_path / "b.jsonl"]
    with pytest.raises(UserError, match=r"^data\.root: .*missing cannot be opened \(No such file or directory\)"):
        lines.find(tmp_path / "missing", "*", "data.format.files", "rows")
    with pytest.raises(UserError, match=r"^data\.format\.files: no file in .* matches '\*\.csv', expected rows"):
        lines.find(tmp_path, "*.csv", "data.format.files", "rows")


def test_a_name_is_held_out_by_a_whole_word() -> None:
    held_out = ["test.jsonl.gz", "helpful-base.test.jsonl", "my_eval.json", "validation-1.jsonl"]
    assert all(lines.is_test(Path(name)) for name in held_out)
    assert not any(lines.is_test(Path("test") / name) for name in ["train.jsonl", "latest.jsonl", "contest.jsonl"])


def test_many_problems_are_cut_to_the_first_ones() -> None:
    problems = Problems()
    problems.stop()
    problems.add(*(f"line {i}" for i in range(45)))
    assert len(problems) == 45 and len(problems.shown) == 20
    with pytest.raises(UserError) as caught:
        problems.stop()
    assert caught.value.problems == [f"line {i}" for i in range(20)] + ["... and 25 more"]
