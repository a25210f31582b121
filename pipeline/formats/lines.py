"""Reading rows of JSON from files people have, with the file and line of everything that is wrong.

`.jsonl` is one object per line that ends with \\n and nothing else (texts may hold U+2028 or U+0085); `.json` may also
be one list of objects; both may be packed or UTF-16 (opening.py). Planning reads the data too: heavy packages are
imported where a file needs one.
"""

import contextlib
import glob
import io
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import Problems, UserError, one_line
from pipeline.formats.opening import kind_of, opened

_PIECE = 1 << 16  # characters of a list read at once
_SPACE = re.compile(r"[ \t\r\n]*")
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError)  # what reading a broken file raises
_TEST_NAME = re.compile(r"(^|[._-])(test|eval|valid|validation)([._-]|$)")


@dataclass(frozen=True)
class Row:
    """One JSON object and where it stands: "file:line"."""

    where: str
    file: Path
    data: dict[str, Any]


def find(root: Path, pattern: str, key: str, expected: str) -> list[Path]:
    """The files a glob `pattern` under `root` means, sorted; `root` itself where it is a file.

    Raises UserError naming `data.root` or the setting `key` the pattern came from.
    """
    try:
        root.stat()
    except OSError as error:
        raise UserError(f"data.root: {root} cannot be opened ({error.strerror}), expected {expected}") from None
    if root.is_file():
        return [root]
    names = sorted(glob.glob(pattern, root_dir=root, recursive=True)) or [glob.escape(pattern)]
    files = [root / name for name in names if (root / name).is_file()]
    if not files:
        raise UserError(f"{key}: no file in {root} matches {pattern!r}, expected {expected}")
    return files


def rows(files: list[Path], problems: Problems, bad: Problems | None = None, skip: int = 0) -> Iterator[Row]:
    """Every row of the files, in order. Files that cannot be read are reported in `problems`, rows in `bad` (None:
    there as well), one "file:line: ..." each. skip: lines, or items of a list, that each file begins with.
    """
    for file in files:
        yield from _rows(file, problems, problems if bad is None else bad, skip)


@contextlib.contextmanager
def reported(row: Row, problems: Problems) -> Iterator[None]:
    """Where the body raises ValueError, the row is one more problem."""
    try:
        yield
    except ValueError as error:
        problems.add(f"{row.where}: {error}")


def of_one_model(path: str, model: str | None, key: str, problems: Problems) -> Iterator[Row]:
    """The rows of a file of judgments whose `key` names `model`. Raises UserError: None, and it judges several."""
    models: set[str] = set()
    for row in rows([Path(path)], problems):
        found = str(row.data.get(key))
        if model in (None, found):
            models.add(found)
            yield row
    if len(models) > 1:
        raise UserError(f"evaluation.judgments.model: {path} judges {', '.join(sorted(models))}; name one")


def is_test(file: Path) -> bool:
    """Whether the name says held out: `test.jsonl.gz`, `helpful-base.test.jsonl`, `eval.json`."""
    return _TEST_NAME.search(file.name) is not None


def stem(file: Path) -> str:
    """The file's name without .jsonl, .json and .gz: what goes into a group's `dataset`."""
    return re.sub(r"(\.(jsonl?|parquet|csv|tsv|arrow|txt))?(\.(gz|zst|xz|bz2))?$", "", file.name)


def _rows(file: Path, problems: Problems, bad: Problems, skip: int) -> Iterator[Row]:
    before, number, seen = len(problems), 0, 0
    try:
        with opened(file) as stream:
            if kind := kind_of(stream) or _other_text(stream):
                problems.add(f"{file}: is {kind}, expected one JSON object per line; data=files reads Parquet, CSV, "
                             "TSV, Arrow and text files, too")
                return
            if ".json" in file.suffixes and stream.peek(64).lstrip()[:1] == b"[":
                for number, data in enumerate(_list(file, stream, problems), 1):
                    seen += 1
                    yield from _row(f"{file}:row {number}", file, data, bad) if number > skip else ()
            else:
                seen = sum(1 for _ in itertools.islice(stream, skip))
                for number, raw in enumerate(stream, skip + 1):
                    if raw.strip():
                        seen += 1
                        yield from _line(f"{file}:{number}", file, raw, number == 1, bad)
    except DAMAGED as error:
        problems.add(damage(file, number, error))
    else:
        if not seen and len(problems) == before:
            problems.add(f"{file}: is empty, expected one JSON object per line")


def damage(file: Path, number: int, error: Exception) -> str:
    """What is wrong with a file that can be read up to row `number` only."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    return (f"{file}:{number + 1}: cannot be read from here on ({text}), expected a whole, readable file; "
            "fetch or copy it again")


def _other_text(stream: io.BufferedReader) -> str:
    """What a text is that has no JSON in its first lines, so that it is told once; '' for JSON."""
    first = [line.lstrip(b"\xef\xbb\xbf").strip() for line in stream.peek(1 << 13).split(b"\n")[:4]]
    told = [line for line in first if line]
    if told[:1] == [b"{"]:
        return "one JSON object written over several lines"
    if len(told) < 3 or any(line[:1] in b"{[" for line in told):
        return ""
    return "a table of texts (CSV, TSV)" if min(line.count(b",") + line.count(b"\t") for line in told) else "plain text"


def _line(where: str, file: Path, raw: bytes, first: bool, problems: Problems) -> Iterator[Row]:
    try:
        data = json.loads(raw.decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError as error:
        problems.add(f"{where}: byte {error.start + 1} of the line is not UTF-8, expected UTF-8 text; "
                        "convert the file, e.g. iconv -f latin1 -t utf-8")
    except (ValueError, RecursionError) as error:
        if raw.endswith(b"\n"):
            problems.add(f"{where}: not JSON ({error}), expected one object per line")
        else:
            problems.add(f"{where}: half-written, the file ends inside this line ({error}); write it again or "
                            "remove the line")
    else:
        yield from _row(where, file, data, problems)


def _list(file: Path, stream: io.BufferedReader, problems: Problems) -> Iterator[Any]:
    """The items of a JSON list, each as soon as it is read."""
    try:
        yield from _items(io.TextIOWrapper(stream, "utf-8-sig"))
    except (ValueError, RecursionError) as error:
        problems.add(_list_problem(file, error))


def _items(text: io.TextIOWrapper) -> Iterator[Any]:
    """Raises ValueError where the text is no list."""
    decoder, held, at, first = json.JSONDecoder(), "", 0, True
    while True:
        try:
            at = _SPACE.match(held, at).end()  # type: ignore[union-attr]
            if held[at:at + 1] == "]" and not first:
                break
            start = _SPACE.match(held, at + 1).end()  # type: ignore[union-attr]  # behind the bracket or comma
            if first and held[start:start + 1] == "]":
                at = start
                break
            if held[at:at + 1] != ("[" if first else ","):
                raise ValueError
            item, end = decoder.raw_decode(held, start)
            whole = end < len(held)  # else the number or word may go on
        except ValueError:
            whole = False
        if whole:
            yield item
            at, first = end, False
            continue
        piece = text.read(max(_PIECE, len(held)))
        if not piece:
            raise ValueError("the list does not end")
        held, at = held[at:] + piece, 0
    if (held[at + 1:] + text.read()).strip():
        raise ValueError("more behind the list")


def _list_problem(file: Path, error: Exception) -> str:
    """Where in the file the first error is; read whole, since it has to be named."""
    try:
        with opened(file) as stream:
            raw = stream.read()
        json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as found:
        line = raw.count(b"\n", 0, found.start) + 1
        return f"{file}:{line}: byte {found.start + 1} of the file is not UTF-8, expected UTF-8 text"
    except json.JSONDecodeError as found:
        return f"{file}:{found.lineno}: not JSON ({found.msg}), expected one list of objects"
    except (ValueError, RecursionError) as found:
        error = found
    return f"{file}: not JSON ({error}), expected one list of objects"


def _row(where: str, file: Path, data: Any, problems: Problems) -> Iterator[Row]:
    if isinstance(data, dict):
        yield Row(where, file, data)
    else:
        problems.add(f"{where}: {type(data).__name__} {str(data)[:40]!r}, expected a JSON object")
