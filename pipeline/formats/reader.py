"""Rows of what people have: files of every kind, folders of them, what `datasets` saved, data sets of the hub.

JSON, CSV, TSV and text are read here, so that a bad row is named by file and line; Parquet, Arrow, saved data sets and
the hub by `datasets`, a batch in memory at a time. Nothing is copied into a cache but what the hub sends.
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import hub
from pipeline.config import setting
from pipeline.errors import Problems, UserError
from pipeline.formats import lines
from pipeline.formats.lines import DAMAGED, Row, damage
from pipeline.formats.opening import kind_of, opened

EXPECTED = "a file, a folder of files (JSON, Parquet, CSV, TSV, Arrow, text), a folder of save_to_disk, or hf:org/name"
STORY_END = "<|endoftext|>"
_KINDS = (".json", ".jsonl", ".parquet", ".csv", ".tsv", ".arrow", ".txt")
_PACKED = (".gz", ".zst", ".xz", ".bz2")
_SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk leaves in its folder
_ABOUT = ("dataset_info.json", "dataset_infos.json", *_SAVED)  # files about data, not of them
_OF_A_WORKSPACE = "file-hashes.json"  # of pipeline/store.py: what runs made is no data of theirs
_LONGEST = 2**31 - 1  # characters of a field


@dataclass(frozen=True)
class Source:
    """Where rows are, and how many of them are taken."""

    path: str  # file, folder or hf:org/name@revision
    files: str | None = None  # glob under a folder; null: every file of a kind that is read
    config: str | None = None  # of a hub's data set
    split: str | None = None  # of a hub's or a saved data set; null: all
    weight: float = setting(1.0, above=0, high=1)  # share of the rows, chosen by a hash of the prompt
    limit: int | None = setting(None, low=1)  # the most rows: the first ones
    columns: dict[str, str | None] = field(default_factory=dict)  # as data.columns, for this source


def files(source: Source, key: str) -> list[Path]:
    """The files that will be read, sorted; none of the hub's. Raises UserError naming `key` where there are none."""
    if source.path.startswith(hub.DATA):
        return []
    root = Path(source.path).expanduser()
    if root.is_dir() and source.files is None:
        found = sorted(path for path in root.rglob("*") if path.is_file() and not _hidden(path, root))
        saved, ours = _saved_in(found), {path.parent for path in found if path.name == _OF_A_WORKSPACE}
        found = [path for path in found if not set(path.parents) & ours and (set(path.parents) & saved or
                 (_suffix(path) in _KINDS and path.name not in _ABOUT))]
        if not found:
            raise UserError(f"{key}: no file in {root} is of a kind that is read, expected {EXPECTED}")
        return [path for path in found if _suffix(path) != ".txt"] or found  # a readme.txt beside them is no data
    return lines.find(root, source.files or "", key, EXPECTED)


def rows(source: Source, problems: Problems, bad: Problems, after: str = "") -> Iterator[Row]:
    """Every row, in order. What cannot be read is reported in `problems`, single rows in `bad`.

    after: the place of a row; those up to it are passed over, its file's without being parsed.
    """
    place, skip = _behind(after)
    if source.path.startswith(hub.DATA):
        yield from _of_hub(source, problems, place, skip)
        return
    found = files(source, "data.root")
    saved = _saved_in(found)
    for folder in sorted(saved):
        for name, table in _saved(folder, source.split, problems):
            if place in ("", str(name)):
                rest = table.select(range(skip, len(table))) if skip < len(table) else []
                yield from (Row(f"{name}:row {n}", name, dict(row)) for n, row in enumerate(rest, skip + 1))
                place, skip = "", 0
    for file in found:
        if not set(file.parents) & saved and place in ("", str(file)):
            yield from _file(file, problems, bad, skip)
            place, skip = "", 0


def _behind(after: str) -> tuple[str, int]:
    """The file, table or split of a row's place, and the row's number there."""
    place, _, number = after.rpartition(":")
    return place, int(number.removeprefix("row ")) if place else 0


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _saved_in(found: list[Path]) -> set[Path]:
    """The folders that save_to_disk wrote, the outermost of each."""
    marked = {path.parent for path in found if path.name in _SAVED}
    return {folder for folder in marked if not marked & set(folder.parents)}


def _suffix(file: Path) -> str:
    return (Path(file.stem) if file.suffix in _PACKED else file).suffix.lower()


def _file(file: Path, problems: Problems, bad: Problems, skip: int) -> Iterator[Row]:
    kind = _suffix(file)
    try:
        with opened(file) as stream:
            binary = kind_of(stream)
    except DAMAGED as error:
        problems.add(damage(file, 0, error))
        return
    if binary in ("a Parquet file", "an Arrow file", "an Arrow stream"):
        yield from _loaded("parquet" if binary == "a Parquet file" else "arrow", file, problems, skip)
    elif binary or kind in (".parquet", ".arrow"):
        empty = not file.stat().st_size
        problems.add(f"{file}: is {'empty' if empty else binary or 'no Parquet or Arrow file'}, expected {EXPECTED}")
    elif kind in (".csv", ".tsv"):
        yield from _table(file, "," if kind == ".csv" else "\t", problems, bad, skip)
    elif kind == ".txt":
        yield from _text(file, problems, bad, skip)
    else:
        yield from lines.rows([file], problems, bad, skip)


def _table(file: Path, delimiter: str, problems: Problems, bad: Problems, skip: int) -> Iterator[Row]:
    """Rows of CSV with a header, all values texts, empty ones absent; `where` is the line a row ends in."""
    number, seen = 0, False
    csv.field_size_limit(_LONGEST)
    try:
        with opened(file) as stream:
            reader = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
            header = next(reader, [])
            if len(set(header)) < len(header):
                problems.add(f"{file}:1: two columns have one name ({', '.join(header)[:80]}), expected a header")
                return
            for values in reader:
                number = reader.line_num
                if not values:
                    continue
                seen = True
                if number <= skip:
                    continue
                if len(values) == len(header):
                    yield Row(f"{file}:{number}", file, {k: v or None for k, v in zip(header, values, strict=True)})
                else:
                    bad.add(f"{file}:{number}: {len(values)} values, expected {len(header)} as in the header")
    except (*DAMAGED, csv.Error) as error:
        problems.add(damage(file, number, error))
    else:
        if not seen:
            problems.add(f"{file}: is empty, expected a header and rows")


def _text(file: Path, problems: Problems, bad: Problems, skip: int) -> Iterator[Row]:
    """A row for each line {"text": line}; where lines "<|endoftext|>" divide the file, for each story."""
    number, held, first = 0, list[bytes](), 0
    try:
        with opened(file) as stream:
            stories = STORY_END.encode() in stream.peek(1 << 16)
            for number, raw in enumerate(stream, 1):
                held, first = [*held, raw] if stories else [raw], first or number
                if not stories or raw.strip() == STORY_END.encode():
                    if first > skip:
                        yield from _line_of_text(file, first, held[:-1] if stories else held, bad)
                    held, first = [], 0
            if any(map(bytes.strip, held)) and stories and first > skip:
                yield from _line_of_text(file, first, held, bad)
    except DAMAGED as error:
        problems.add(damage(file, number, error))
    else:
        if not number:
            problems.add(f"{file}: is empty, expected lines of text")


def _line_of_text(file: Path, number: int, held: list[bytes], bad: Problems) -> Iterator[Row]:
    try:
        yield Row(f"{file}:{number}", file, {"text": b"".join(held).decode("utf-8-sig").strip("\n\r")})
    except UnicodeDecodeError:
        bad.add(f"{file}:{number}: is not UTF-8, expected UTF-8 text; convert the file, e.g. iconv -f latin1 -t utf-8")


def _loaded(kind: str, file: Path, problems: Problems, skip: int) -> Iterator[Row]:
    number = skip
    try:
        import datasets

        loaded = datasets.load_dataset(kind, data_files=[str(file)], split="train", streaming=True)
        for number, row in enumerate(loaded.skip(skip) if skip else loaded, skip + 1):
            yield Row(f"{file}:row {number}", file, dict(row))
    except Exception as error:  # of a broken file, as many kinds as there are readers below `datasets`
        problems.add(damage(file, number, error))
    else:
        if not number:
            problems.add(f"{file}: is empty, expected rows")


def _saved(folder: Path, split: str | None, problems: Problems) -> Iterator[tuple[Path, Any]]:
    """What `datasets` wrote with save_to_disk, each table with its place: one, or one for each split."""
    try:
        import datasets

        loaded = datasets.load_from_disk(str(folder))
        tables = loaded if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
    except Exception as error:
        problems.add(damage(folder, 0, error))
        return
    if split is not None and split not in tables:
        problems.add(f"data.split: {folder} has no split {split!r}, it has {', '.join(tables)}")
        return
    for name, table in tables.items():
        if split in (None, name):
            yield folder / name if name else folder, table


def _of_hub(source: Source, problems: Problems, begun: str, skip: int) -> Iterator[Row]:
    """Rows as the hub sends them: those behind the limit are not fetched."""
    repo, _, revision = source.path.removeprefix(hub.DATA).partition("@")
    number = 0
    try:
        import datasets

        loaded = datasets.load_dataset(repo, source.config, revision=revision or None, split=source.split,
                                       streaming=True)
        tables = loaded if isinstance(loaded, dict) else {source.split or "": loaded}
        for name, table in tables.items():
            place, shown = Path(repo) / name, f"{source.path}/{name}"
            if begun not in ("", shown):
                continue
            for number, row in enumerate(table.skip(skip) if skip else table, skip + 1):
                yield Row(f"{shown}:row {number}", place, dict(row))
            begun, skip = "", 0
    except Exception as error:
        refused = hub.refused(error)
        problems.add(f"data.root: {source.path}: {refused}" if refused else
                     f"data.root: {source.path} cannot be read from row {number + 1} on: {type(error).__name__}: "
                     f"{' '.join(str(error).split())[:300]}; data.config and data.split choose a part of it")
