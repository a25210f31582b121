"""Numbers of completions in side tables: a score or a log-prob is a column beside the groups, not a copy of them.

A side table is a folder of `part-00000.parquet` files with one row per completion, {id, k, one column per name}, in the
order of the groups. A part's metadata names the tables its rows are of, by digest, and how many rows are of each: a
number can never be read for groups with other tokens, since a table of other bytes has another digest.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import tables
from pipeline.errors import UserError
from pipeline.records import Completion, Group
from pipeline.stage import Context

KEYS = ("id", "k")  # the columns that are no numbers
LOGP = "logp"  # a log-prob's column: the sum over a completion's tokens, nats
WEIGHT = "weight"  # of the whole group, on each of its completions
REPLAY = "replay"  # a factor on the weight of the whole group, 0 where it is left out: likewise
_SOURCES = b"sources"  # the metadata's key: [[digest of a table, rows of it], ...] in the order of the rows
_ROWS = 8192  # per row group
_GROUPS = 1024  # joined at once

Row = tuple[str, str, Sequence[Mapping[str, float]]]  # (the table's digest, a group's id, each completion's numbers)


@dataclass(frozen=True)
class Source:
    """A table of groups, as a step is given it."""

    path: Path
    digest: str


def sources(context: Context, name: str = "groups") -> list[Source]:
    """The tables of an input, in recipe order."""
    return list(itertools.starmap(Source, zip(context.inputs[name], context.digests[name], strict=True)))


def write_part(folder: Path, index: int, rows: Iterable[Row]) -> Path:
    """Write one part so that it is either absent or complete."""
    ids, places, found, origin = list[str](), list[int](), list[Mapping[str, float]](), list[list[Any]]()
    for digest, name, values in rows:
        if not origin or origin[-1][0] != digest:
            origin.append([digest, 0])
        origin[-1][1] += len(values)
        ids += [name] * len(values)
        places += range(len(values))
        found += values
    numbers = {name: [one.get(name) for one in found] for name in dict.fromkeys(n for one in found for n in one)}
    schema = pa.schema([("id", pa.string()), ("k", pa.int32()), *((name, pa.float64()) for name in numbers)],
                       metadata={_SOURCES: json.dumps(origin)})
    table = pa.Table.from_pydict({"id": ids, "k": places, **numbers}, schema=schema)
    return tables.put(tables.part_path(folder, index), table, _ROWS)


def load(folders: Iterable[Path], digest: str) -> pa.Table | None:
    """The rows about the table of groups with this digest, None where there are none."""
    found: list[pa.Table] = []
    for part in (part for folder in folders for part in tables.parts(folder)):
        with pq.ParquetFile(part) as file:
            at, origin = 0, json.loads((file.schema_arrow.metadata or {}).get(_SOURCES, b"[]"))
            rows = file.read() if digest in (of for of, _ in origin) else None
        for of, number in origin:
            if rows is not None and of == digest:
                found.append(rows.slice(at, number))
            at += number
    return pa.concat_tables(found, promote_options="default").replace_schema_metadata() if found else None


def numbers(folder: Path, name: str) -> Iterator[tuple[str, int, float | None]]:
    """(a group's id, place of the completion, its number of that name) of every row, whatever table it is about."""
    for part in tables.parts(folder):
        rows = pq.read_table(part, columns=[*KEYS, name])
        yield from zip(*(column.to_pylist() for column in rows.columns), strict=True)


def span(table: pa.Table, at: int, ids: Sequence[str], numbers: np.ndarray) -> pa.Table:
    """The rows from place `at` on of groups `ids` with (G,) `numbers` of completions.

    Raises UserError where other groups stand there: the table is damaged.
    """
    rows = table.slice(at, int(numbers.sum()))
    first = np.repeat(np.cumsum(numbers) - numbers, numbers)
    same = rows["id"].equals(pa.chunked_array([np.repeat(np.array(ids, object), numbers)], pa.string()))
    if not same or not np.array_equal(rows["k"].to_numpy(), np.arange(len(first)) - first):
        raise UserError(f"the side table's rows from {at} on are not of the groups from {ids[0]!r} on; make the table "
                        "again (align verify finds what is damaged)")
    return rows


def with_scores(source: Source, scores: Sequence[Path]) -> Iterator[Group]:
    """The groups of a table, every completion with the scores beside it; those replace its own of the same name.

    Raises UserError where the scores are of another table.
    """
    return _joined(source, scores, "scores", lambda c, row: replace(
        c, scores={**c.scores, **{name: value for name, value in row.items() if value is not None}}))


def with_logps(source: Source, logps: Sequence[Path]) -> Iterator[Group]:
    """The groups of a table, every completion with the `ref_logp` beside it. Raises UserError as `with_scores`."""
    return _joined(source, logps, "log-probs", lambda c, row: replace(c, ref_logp=row[LOGP]))


def replayed(source: Source, replay: Sequence[Path]) -> Iterator[Group]:
    """The groups of a table that are trained on, with what the side table says as scores; all where there is none."""
    if not replay:
        return tables.read(source.path)
    return (group for group in with_scores(source, replay) if group.completions[0].scores[REPLAY] > 0)


def scored(context: Context, groups: str = "groups", scores: str = "scores") -> Iterator[Group]:
    """The groups of an input with the scores of another one, as they are where it is not given."""
    if not context.inputs.get(scores):
        return tables.read(context.one(groups))
    (source,) = sources(context, groups)
    return with_scores(source, context.inputs[scores])


def _joined(source: Source, folders: Sequence[Path], what: str,
            put: Callable[[Completion, dict[str, Any]], Completion]) -> Iterator[Group]:
    table, at = load(folders, source.digest), 0
    for groups in tables.batches(tables.read(source.path), _GROUPS):
        if table is None:
            raise other(folders[0], what, source)
        numbers = np.array([len(group.completions) for group in groups])
        rows = iter(span(table, at, [group.id for group in groups], numbers).drop_columns(list(KEYS)).to_pylist())
        at += int(numbers.sum())
        for group in groups:
            yield replace(group, completions=tuple(put(c, next(rows)) for c in group.completions))


def other(folder: Path, what: str, source: Source) -> UserError:
    """What to say of a side table that knows nothing of a table."""
    return UserError(f"{folder}: no {what} of {source.path}, it is of another table; make it of exactly this one")
