"""Rows of a table without reading the table: footers first, then the one row group a row is in.

A table of a million completions is some hundred files; a page of it touches one or two row groups.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.dashboard.files import Files, NotHere
from pipeline import tables
from pipeline.columns import KEYS

_TEXT = ("messages", "completions.list.element.text")


@dataclass(frozen=True)
class Block:
    """One row group: where it is and the number of its first row in the whole table."""

    part: Path
    group: int
    first: int
    rows: int


@dataclass(frozen=True)
class Table:
    """Every row group of a table, in order."""

    folder: Path
    blocks: tuple[Block, ...]
    mark: tuple[int, ...]  # changes when a part is added

    @property
    def rows(self) -> int:
        return self.blocks[-1].first + self.blocks[-1].rows if self.blocks else 0


def warm_up() -> None:
    """The first array makes pyarrow import pandas: 0.3 s that no reader need wait for."""
    pa.array([""])


def open_table(files: Files, folder: Path) -> Table:
    """The table's row groups, from its parts' footers. NotHere where the folder has no finished part."""
    try:
        stat = folder.stat()  # a part comes by renaming, which changes the folder's time
    except OSError:
        raise NotHere("no table there yet") from None
    mark = (stat.st_mtime_ns, stat.st_ino)
    made: Table = files.remember(("table", folder), mark, lambda: _read_footers(folder, mark))
    if not made.blocks:
        raise NotHere("no table there yet")
    return made


def joined(several: list[Table]) -> Table:
    """Tables one after another, as one."""
    blocks = list[Block]()
    for table in several:
        first = blocks[-1].first + blocks[-1].rows if blocks else 0
        blocks += [replace(block, first=first + block.first) for block in table.blocks]
    return Table(several[0].folder, tuple(blocks), tuple(n for table in several for n in table.mark))


def _read_footers(folder: Path, mark: tuple[int, ...]) -> Table:
    """Links are left out: what they point to need not be the workspace's."""
    blocks, first = [], 0
    parts = [p for p in tables.parts(folder) if p.is_file() and not p.is_symlink()]
    with ThreadPoolExecutor() as pool:
        footers = list(pool.map(pq.read_metadata, parts))
    for part, footer in zip(parts, footers, strict=True):
        for group in range(footer.num_row_groups):
            rows = footer.row_group(group).num_rows
            blocks.append(Block(part, group, first, rows))
            first += rows
    return Table(folder, tuple(blocks), mark)


def rows(table: Table, start: int, count: int, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """Rows [start, start + count) as plain dicts; scores as a dict by name."""
    found: list[dict[str, Any]] = []
    for block in table.blocks:
        low, high = max(start, block.first), min(start + count, block.first + block.rows)
        if low < high:
            content = _read(block, columns).slice(low - block.first, high - low)
            found += content.to_pylist(maps_as_pydicts="lossy")
    return found


def at(table: Table, indices: list[int], columns: list[str] | None = None) -> dict[int, dict[str, Any]]:
    """Single rows by their number: each row group they lie in is read once."""
    found: dict[int, dict[str, Any]] = {}
    for block in table.blocks:
        inside = [i for i in indices if block.first <= i < block.first + block.rows]
        if inside:
            content = _read(block, columns).take([i - block.first for i in inside])
            found |= dict(zip(inside, content.to_pylist(maps_as_pydicts="lossy"), strict=True))
    return found


def _read(block: Block, columns: list[str] | None) -> pa.Table:
    with pq.ParquetFile(block.part) as file:
        return file.read_row_group(block.group, columns=columns)


def find_ids(files: Files, table: Table, wanted: list[str]) -> dict[str, int]:
    """Where prompts are, by id."""
    ids = ids_of(files, table)
    places = pc.indices_nonzero(pc.is_in(ids, value_set=pa.array(wanted, pa.string()))).to_pylist()
    return {ids[i].as_py(): i for i in places}


def numbers(files: Files, side: Table, wanted: list[str]) -> dict[tuple[str, int], dict[str, float]]:
    """(prompt's id, place of the completion) -> what a side table says of it, by name."""
    ids = ids_of(files, side)
    places = pc.indices_nonzero(pc.is_in(ids, value_set=pa.array(wanted, pa.string()))).to_pylist()
    return {(row.pop("id"), row.pop("k")): row for row in at(side, places).values()}


def ids_of(files: Files, table: Table) -> pa.ChunkedArray:
    """The column of ids, read once per table."""
    found: pa.ChunkedArray = files.remember(("ids", table.folder), table.mark, lambda: _ids(table))
    return found


def _ids(table: Table) -> pa.ChunkedArray:
    parts = list(dict.fromkeys(block.part for block in table.blocks))
    with ThreadPoolExecutor() as pool:
        columns = list(pool.map(_id_column, parts))
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())


def _id_column(part: Path) -> pa.ChunkedArray:
    with pq.ParquetFile(part) as file:
        return file.read(columns=["id"])["id"]


def search(table: Table, text: str, start: int, limit: int, answers: bool, seconds: float) -> tuple[list[int], int]:
    """Rows from `start` on whose prompt (or an answer) contains `text`, whatever its case, and where to go on.

    Stops at `limit` rows or after `seconds`, between two row groups; `table.rows` means the end was reached.
    """
    found: list[int] = []
    deadline = time.monotonic() + seconds
    for block in table.blocks:
        if block.first + block.rows <= start:
            continue
        if time.monotonic() > deadline:
            return found, block.first
        for row in _matches(block, text, answers):
            if row >= start:
                found.append(row)
                if len(found) == limit:
                    return found, row + 1
    return found, table.rows


def _matches(block: Block, text: str, answers: bool) -> list[int]:
    content = _read(block, list(_TEXT if answers else _TEXT[:1])).combine_chunks()
    hits = [_rows_with(content["messages"], "content", text)]
    if answers:
        hits.append(_rows_with(content["completions"], "text", text))
    return [block.first + int(i) for i in np.unique(np.concatenate(hits))]


def _rows_with(column: pa.ChunkedArray, field: str, text: str) -> np.ndarray:
    """Rows of a list-of-struct column where the field of any element contains the text."""
    found, before = [np.empty(0, dtype=np.int64)], 0
    for chunk in column.chunks:
        hit = pc.match_substring(pc.struct_field(chunk.flatten(), field), text, ignore_case=True)
        parents = pc.list_parent_indices(chunk).filter(pc.fill_null(hit, False))
        found.append(parents.to_numpy(zero_copy_only=False) + before)
        before += len(chunk)
    return np.concatenate(found)


def scores(table: Table, most: int) -> tuple[dict[str, np.ndarray], int]:
    """Score name -> its finite values, and of how many rows: all, or about `most` prompts in evenly spread row groups.

    A row of a table of groups is a prompt, one of a side table a completion.
    """
    step = max(1, int(table.rows / _per_prompt(table)) // max(1, most))
    found: dict[str, list[np.ndarray]] = {}
    read = 0
    for block in table.blocks[::step]:
        read += block.rows
        for name, values in _scores(block):
            found.setdefault(name, []).append(values[np.isfinite(values)])
    return {name: np.concatenate(parts) for name, parts in found.items()}, read


def _per_prompt(table: Table) -> float:
    """Rows for each prompt, as the first row group has them."""
    with pq.ParquetFile(table.blocks[0].part) as file:
        if "k" not in file.schema_arrow.names:
            return 1.0
    places = _read(table.blocks[0], ["k"])["k"].to_numpy()
    return max(1.0, len(places) / (int(np.count_nonzero(places == 0)) or 1))


def _scores(block: Block) -> Iterator[tuple[str, np.ndarray]]:
    with pq.ParquetFile(block.part) as file:
        names = [name for name in file.schema_arrow.names if name not in KEYS]
    if "completions" not in names:
        for name, column in zip(names, _read(block, names).columns, strict=True):
            yield name, column.cast(pa.float32()).drop_null().to_numpy()
        return
    for chunk in _read(block, ["completions.list.element.scores"])["completions"].chunks:
        maps = pc.struct_field(chunk.flatten(), "scores")
        keys, values = maps.keys, maps.items.cast(pa.float32()).to_numpy(zero_copy_only=False)
        for name in pc.unique(keys).to_pylist():
            yield name, values[pc.equal(keys, name).to_numpy(zero_copy_only=False)]
