"""Preference groups on disk: a table is a folder of `part-00000.parquet` files with one explicit schema.

A part is written whole under a temporary name and renamed, so a part that exists is complete; that is what makes
generation, scoring and reference log-probs resumable shard by shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import files
from pipeline.records import Completion, Group, Message

_COMPLETION = pa.struct([
    ("text", pa.string()),
    ("token_ids", pa.list_(pa.int32())),
    ("finish_reason", pa.string()),
    ("scores", pa.map_(pa.string(), pa.float64())),
    ("ref_logp", pa.float64()),
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


def part_path(table: Path, index: int) -> Path:
    return table / f"part-{index:05d}.parquet"


def parts(table: Path) -> list[Path]:
    """The finished parts of a table, in order."""
    return sorted(table.glob("part-*.parquet"))


def count(table: Path) -> int:
    """Number of groups, from the Parquet footers only."""
    return sum(int(pq.read_metadata(part).num_rows) for part in parts(table))


def read(table: Path) -> Iterator[Group]:
    """Every group in order, one row group in memory at a time."""
    for part in parts(table):
        yield from read_part(part)


def read_part(part: Path) -> Iterator[Group]:
    with pq.ParquetFile(part) as file:
        for batch in file.iter_batches(batch_size=1024):
            yield from map(_from_row, batch.to_pylist(maps_as_pydicts="strict"))


def write_part(table: Path, index: int, groups: Iterable[Group]) -> Path:
    """Write one part so that it is either absent or complete, even across a power cut."""
    target = part_path(table, index)
    rows = pa.Table.from_pylist([_to_row(group) for group in groups], schema=SCHEMA)
    with files.replacing(target) as temporary:
        pq.write_table(rows, temporary, compression="zstd", row_group_size=1024)
    return target


def write(table: Path, groups: Iterable[Group], part_size: int = 8192) -> int:
    """Write a whole table, `part_size` groups at a time. Returns the number of groups; an empty table has one part."""
    total, index, batch = 0, 0, []
    for group in groups:
        batch.append(group)
        if len(batch) == part_size:
            write_part(table, index, batch)
            total, index, batch = total + len(batch), index + 1, []
    if batch or index == 0:
        write_part(table, index, batch)
    return total + len(batch)


def _to_row(group: Group) -> dict[str, Any]:
    return {
        "id": group.id,
        "messages": [{"role": m.role, "content": m.content} for m in group.messages],
        "completions": [{**vars(c), "scores": list(c.scores.items())} for c in group.completions],
        "prompt_ids": group.prompt_ids,
        "label": group.label,
        "weight": group.weight,
        "dataset": group.dataset,
        "iteration": group.iteration,
    }


def _from_row(row: dict[str, Any]) -> Group:
    completions = tuple(
        Completion(**{**c, "token_ids": tuple(c["token_ids"]), "prompt_ids": tuple(c["prompt_ids"]),
                      "logprobs": None if c.get("logprobs") is None else tuple(c["logprobs"]),
                      "scores": dict(c["scores"])})
        for c in row["completions"]
    )
    messages = tuple(Message(**m) for m in row["messages"])
    return Group(**{**row, "messages": messages, "completions": completions, "prompt_ids": tuple(row["prompt_ids"])})
