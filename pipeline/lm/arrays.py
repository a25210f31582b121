"""Tables of groups as flat arrays, read from Parquet batch by batch: no Python object per row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import tables
from pipeline.records import STOP, Group

_BATCH = 1024  # rows in memory at once
_COMPLETION = "completions.list.element."


@dataclass(frozen=True)
class Ragged:
    """Lists of different lengths: list i is values[starts[i]:starts[i + 1]]."""

    values: np.ndarray
    starts: np.ndarray  # (n + 1,) int64

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)


@dataclass(frozen=True)
class Numbers:
    """One number per completion, of the groups that have all of theirs."""

    values: np.ndarray  # (C,) float64
    present: np.ndarray  # (G,) bool


@dataclass(frozen=True)
class Chunk:
    """Consecutive groups: G of them with C completions."""

    ids: list[str]
    prompts: Ragged  # G lists of int32
    first: np.ndarray  # (G + 1,) int64, where each group's completions begin
    tokens: Ragged  # C lists of int32
    own: Ragged  # C lists of int32, empty where a completion answers the group's prompt
    stopped: np.ndarray  # (C,) bool, finish_reason is "stop"
    weight: np.ndarray  # (G,) float64
    label: np.ndarray  # (G,) int8: 1, 0, -1 where there is none
    scores: Numbers
    rationales: Ragged  # G lists of int32, empty where a group has none or nobody asked for them
    questions: Ragged  # G lists of int32, the prompts of the rationales

    def group_of(self, completion: int) -> int:
        return int(np.searchsorted(self.first, completion, "right")) - 1

    def longest(self) -> np.ndarray:
        """(G,) int64 tokens of the longest prompt + completion; 0 for a group without completions."""
        shared = np.repeat(self.prompts.lengths, np.diff(self.first))
        rows = np.where(self.own.lengths > 0, self.own.lengths, shared) + self.tokens.lengths
        return np.maximum(_largest(rows, self.first), self.questions.lengths + self.rationales.lengths)

    def highest(self) -> np.ndarray:
        """(G,) int64 largest token id."""
        of_completions = np.maximum(_largest(self.tokens.values, self.tokens.starts),
                                    _largest(self.own.values, self.own.starts))
        of_groups = (_largest(one.values, one.starts) for one in (self.prompts, self.questions, self.rationales))
        return np.maximum.reduce([_largest(of_completions, self.first), *of_groups])


def _largest(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The largest value of each list, 0 for an empty one."""
    found, some = np.zeros(len(starts) - 1, np.int64), np.flatnonzero(np.diff(starts))
    if len(some):
        found[some] = np.maximum.reduceat(values, starts[some])
    return found


def read(table: Path, score: str, rationales: bool = False) -> Iterator[Chunk]:
    """The columns training needs, `_BATCH` rows at a time."""
    more = ("rationale.token_ids", "rationale.prompt_ids") if rationales else ()
    for part in tables.parts(table):
        with pq.ParquetFile(part) as file:
            paths = [file.schema.column(i).path for i in range(len(file.schema))]
            wanted = [p for p in paths if p.split(".")[0] in ("id", "prompt_ids", "label", "weight") or p.startswith(
                (*more, *(_COMPLETION + n for n in ("token_ids", "finish_reason", "scores", "prompt_ids"))))]
            for batch in file.iter_batches(batch_size=_BATCH, columns=wanted):
                if len(batch):
                    yield _chunk(batch, score, rationales)


def of_groups(groups: Sequence[Group]) -> Chunk:
    """The same of groups that are in memory, without scores. Raises ValueError where there are none."""
    (batch,) = tables.to_arrow(groups).to_batches()
    return _chunk(batch, "")


def _chunk(batch: pa.RecordBatch, score: str, rationales: bool = False) -> Chunk:
    groups = batch.column("completions")
    completions = groups.flatten()
    first = _starts(groups)
    made = dict(zip((f.name for f in completions.type), completions.flatten(), strict=True))
    label, none = batch.column("label"), pa.nulls(len(batch), pa.list_(pa.int32()))
    explained = rationales and "rationale" in batch.schema.names
    why = {n: pc.struct_field(batch.column("rationale"), n) if explained else none for n in ("token_ids", "prompt_ids")}
    return Chunk(ids=batch.column("id").to_pylist(), prompts=_ragged(batch.column("prompt_ids")), first=first,
                 tokens=_ragged(made["token_ids"]), own=_ragged(made["prompt_ids"]),
                 stopped=pc.equal(made["finish_reason"], STOP).to_numpy(zero_copy_only=False).astype(bool),
                 weight=batch.column("weight").to_numpy(zero_copy_only=False),
                 label=pc.fill_null(label.cast(pa.int8()), -1).to_numpy(zero_copy_only=False),
                 scores=numbers(_named(made["scores"], score), first),
                 rationales=_ragged(why["token_ids"]), questions=_ragged(why["prompt_ids"]))


def _starts(lists: pa.ListArray) -> np.ndarray:
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _ragged(lists: pa.ListArray) -> Ragged:
    return Ragged(lists.flatten().to_numpy(zero_copy_only=False).astype(np.int32, copy=False), _starts(lists))


def numbers(values: pa.Array, first: np.ndarray) -> Numbers:
    """One value per completion as Numbers; (G + 1,) `first` says where each group's begin."""
    missing = values.is_null().to_numpy(zero_copy_only=False)
    present = (_largest(missing, first) == 0) & (np.diff(first) > 0)
    return Numbers(values.to_numpy(zero_copy_only=False).astype(np.float64), present)


def _named(maps: pa.MapArray, name: str) -> pa.Array:
    """The entry `name` of each map, null where it has none."""
    hits = np.flatnonzero(pc.equal(_entries(maps, "keys"), name).to_numpy(zero_copy_only=False))
    starts = maps.offsets.to_numpy()
    rows = np.searchsorted(starts - starts[0], hits, "right") - 1
    values = _entries(maps, "items").to_numpy(zero_copy_only=False).astype(np.float64)
    found, missing = np.full(len(maps), np.nan), np.ones(len(maps), bool)
    found[rows], missing[rows] = values[hits], False
    return pa.array(found, mask=missing)


def _entries(maps: pa.MapArray, which: str) -> pa.Array:
    starts = maps.offsets
    return getattr(maps, which).slice(starts[0].as_py(), starts[-1].as_py() - starts[0].as_py())
