"""Preference groups on disk: a table is a folder of `part-00000.parquet` files with one explicit schema.

A part is written whole under a temporary name and renamed, so a part that exists is complete; that is what makes
generation, scoring and reference log-probs resumable shard by shard.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import clock, files
from pipeline.records import Completion, Group, Message

T = TypeVar("T")
_COMPLETION = pa.struct([
    ("text", pa.string()),
    ("token_ids", pa.list_(pa.int32())),
    ("finish_reason", pa.string()),
    ("scores", pa.map_(pa.string(), pa.float64())),
    ("ref_logp", pa.float64()),  # null: it stands in a side table (pipeline.columns)
    ("sample", pa.int32()),
    ("temperature", pa.float64()),
    ("seed", pa.int64()),
    ("policy", pa.string()),
    ("prompt_ids", pa.list_(pa.int32())),
    ("logprobs", pa.list_(pa.float32())),
])
SCHEMA = pa.schema([
    ("id", pa.string()),
    ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
    ("completions", pa.list_(_COMPLETION)),
    ("prompt_ids", pa.list_(pa.int32())),
    ("label", pa.bool_()),
    ("weight", pa.float64()),
    ("dataset", pa.string()),
    ("iteration", pa.int32()),
])
_MORE = pa.field("more", pa.string())


def _wider() -> pa.Schema:
    """SCHEMA with what only some data have: fields of messages beside role and content, variables of the template."""
    kinds = {"completions": pa.list_(pa.struct([*_COMPLETION, _MORE])),
             "messages": pa.list_(pa.struct([*SCHEMA.field("messages").type.value_type, _MORE]))}
    return pa.schema([*(pa.field(f.name, kinds.get(f.name, f.type)) for f in SCHEMA), ("template", pa.string())])


WIDER = _wider()
EXPLAINED = WIDER.append(pa.field("rationale", _COMPLETION))  # of preferences with a reason beside them
TARGETED = EXPLAINED.append(pa.field("target", pa.string()))  # of prompts whose answers a rule can check
PART = 8192  # groups of a part, where nothing says otherwise


def part_path(table: Path, index: int) -> Path:
    return table / f"part-{index:05d}.parquet"


def parts(table: Path) -> list[Path]:
    """The finished parts of a table, in order."""
    return sorted(table.glob("part-*.parquet"))


def count(table: Path) -> int:
    """Number of groups, from the Parquet footers only."""
    return sum(map(rows, parts(table)))


def rows(part: Path) -> int:
    """Number of rows of one part."""
    return int(pq.read_metadata(part).num_rows)


def read(table: Path) -> Iterator[Group]:
    """Every group in order, one row group in memory at a time."""
    for part in parts(table):
        yield from read_part(part)


def read_part(part: Path) -> Iterator[Group]:
    with pq.ParquetFile(part) as file:
        for batch in file.iter_batches(batch_size=1024):
            yield from map(from_row, batch.to_pylist(maps_as_pydicts="strict"))


def write_part(table: Path, index: int, groups: Iterable[Group]) -> Path:
    """Write one part so that it is either absent or complete, even across a power cut."""
    return put_groups(part_path(table, index), groups)


def put_groups(part: Path, groups: Iterable[Group]) -> Path:
    """The same of a part by its path."""
    return put(part, to_arrow(groups), 1024)


@clock.spending(clock.WRITE)
def put(path: Path, rows: pa.Table, row_group_size: int) -> Path:
    """Write a Parquet file so that it is either absent or complete."""
    with files.replacing(path) as temporary:
        pq.write_table(rows, temporary, compression="zstd", row_group_size=row_group_size)
        files.note(path, temporary)
    return path


def write(table: Path, groups: Iterable[Group], part_size: int = PART) -> int:
    """Write a whole table, `part_size` groups at a time. Returns the number of groups; an empty table has one part."""
    total = 0
    for index, batch in enumerate(batches(groups, part_size)):
        write_part(table, index, batch)
        total += len(batch)
    if not total:
        write_part(table, 0, [])
    return total


def write_several(folder: Path, names: Sequence[str], rows: Iterable[tuple[str, Group]], begun: bool = False) -> None:
    """Write the tables `names` of (name, group) rows as they come, holding a part of each at most. begun: behind the
    parts that are there.
    """
    waiting = {name: list[Group]() for name in names}
    written = {name: len(parts(folder / name)) if begun else 0 for name in names}

    def put_out(name: str) -> None:
        write_part(folder / name, written[name], waiting[name])
        waiting[name], written[name] = [], written[name] + 1

    for name, group in rows:
        waiting[name].append(group)
        if len(waiting[name]) == PART:
            put_out(name)
    for name in names:
        if waiting[name] or not written[name]:
            put_out(name)


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive lists of `size` items, the last one shorter."""
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def to_arrow(groups: Iterable[Group]) -> pa.Table:
    """The groups as rows of SCHEMA, of a wider one where one of them has what SCHEMA has no place for."""
    rows = [_to_row(group) for group in groups]
    wide = any(r["template"] or any(x["more"] for x in (*r["messages"], *r["completions"])) for r in rows)
    schema = EXPLAINED if any(r["rationale"] for r in rows) else WIDER if wide else SCHEMA
    schema = TARGETED if any(r["target"] for r in rows) else schema
    return pa.Table.from_pylist(rows, schema=schema)


def _to_row(group: Group) -> dict[str, Any]:
    return {**vars(group), "messages": [vars(message) for message in group.messages],
            "completions": [_to_struct(c) for c in group.completions],
            "rationale": None if group.rationale is None else _to_struct(group.rationale)}


def _to_struct(completion: Completion) -> dict[str, Any]:
    return {**vars(completion), "scores": list(completion.scores.items())}


def from_row(row: dict[str, Any]) -> Group:
    """The group that a row of a table is, maps as dicts."""
    messages, rationale = tuple(Message(**m) for m in row["messages"]), row.get("rationale")
    return Group(**{**row, "messages": messages, "completions": tuple(map(_from_struct, row["completions"])),
                    "prompt_ids": tuple(row["prompt_ids"]),
                    "rationale": None if rationale is None else _from_struct(rationale)})


def _from_struct(c: dict[str, Any]) -> Completion:
    return Completion(**{**c, "token_ids": tuple(c["token_ids"]), "prompt_ids": tuple(c["prompt_ids"]),
                         "logprobs": None if c.get("logprobs") is None else tuple(c["logprobs"]),
                         "scores": dict(c["scores"])})
