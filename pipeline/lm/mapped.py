"""A table of groups as a few flat arrays on disk, mapped into memory.

    ids.arrow               group ids
    <list>.values, .npy     the int32 ids of prompts, completions, completions' own prompts; where each begins
    <number>.values, .present.npy   reference log-probs and scores, one per completion; which groups have them
    weight.npy, label.npy, highest.npy, longest.npy   one per group

What a training run holds of a million groups is what it is looking at, and processes on one machine share it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.lm import arrays
from pipeline.lm.arrays import Chunk, Numbers, Ragged

_DONE = "done.json"


@dataclass(frozen=True)
class Elsewhere:
    """Numbers of groups that stand in other tables, found by token ids."""

    keys: np.ndarray  # (N,) uint64, ascending
    first: np.ndarray  # (N,) int64, where each group's numbers begin
    numbers: np.ndarray  # (N,) int64, how many it has
    values: np.ndarray  # float64
    present: np.ndarray  # (N,) bool

    @classmethod
    def of(cls, paths: Sequence[Path], score: str | None) -> Elsewhere:
        """Reference log-probs of the tables, or the scores named `score`. Of equal groups the last one counts."""
        keys, numbers, values, present = ([np.zeros(0, t)] for t in (np.uint64, np.int64, np.float64, bool))
        for path in paths:
            for chunk in arrays.read(path, score or ""):
                found = chunk.ref_logps if score is None else chunk.scores
                for to, what in ((keys, chunk.keys()), (numbers, np.diff(chunk.first)), (values, found.values),
                                 (present, found.present)):
                    to.append(what)
        all_keys, lengths = np.concatenate(keys), np.concatenate(numbers)
        first = np.cumsum(lengths) - lengths
        order = np.argsort(all_keys, kind="stable")
        return cls(all_keys[order], first[order], lengths[order], np.concatenate(values),
                   np.concatenate(present)[order])

    def of_chunk(self, chunk: Chunk) -> tuple[np.ndarray, Numbers]:
        """(G,) bool, which groups are here at all, and their numbers."""
        if len(self.keys) == 0:
            return np.zeros(len(chunk.ids), bool), nothing(chunk)
        keys, wanted = chunk.keys(), np.diff(chunk.first)
        place = np.maximum(np.searchsorted(self.keys, keys, "right") - 1, 0)
        here = (self.keys[place] == keys) & (self.numbers[place] == wanted)
        rows, values = np.repeat(here, wanted), np.full(chunk.first[-1], np.nan)
        at = np.repeat(self.first[place], wanted) + arrays.places(chunk.first).astype(np.int64)
        values[rows] = self.values[at[rows]]
        return here, Numbers(values, here & self.present[place])


def nothing(chunk: Chunk) -> Numbers:
    """No group has any."""
    return Numbers(np.full(chunk.first[-1], np.nan), np.zeros(len(chunk.ids), bool))


def either(chunk: Chunk, other: Numbers) -> Numbers:
    """A group's own scores, the other ones where it has none."""
    own = chunk.scores
    rows = np.repeat(own.present, np.diff(chunk.first))
    return Numbers(np.where(rows, own.values, other.values), own.present | other.present)


@dataclass(frozen=True)
class Flat:
    """A whole table as arrays, mapped into memory: G groups, C completions."""

    ids: list[str]
    prompts: Ragged
    first: np.ndarray  # (G + 1,) int64
    tokens: Ragged
    own: Ragged
    weight: np.ndarray  # (G,) float64
    label: np.ndarray  # (G,) int8: 1, 0, -1 where there is none
    highest: np.ndarray  # (G,) int64, the largest token id
    longest: np.ndarray  # (G,) int64, tokens of the longest prompt + completion
    ref_logps: Numbers
    previous_logps: Numbers
    scores: Numbers


_LISTS = ("prompts", "tokens", "own")
_NUMBERS = ("ref_logps", "previous_logps", "scores")
_PLAIN = ("first", "weight", "label", "highest", "longest")


class Writer:
    """Appends chunks to the arrays of `folder`."""

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder = folder
        self._values = {n: (folder / f"{n}.values").open("wb") for n in (*_LISTS, *_NUMBERS)}
        self._arrays: dict[str, list[np.ndarray]] = {n: [] for n in (
            *(f"{n}.lengths" for n in (*_LISTS, "first")), *(f"{n}.present" for n in _NUMBERS), *_PLAIN[1:])}
        self._ids = pa.ipc.new_file(folder / "ids.arrow", pa.schema([("id", pa.string())]))

    def add(self, chunk: Chunk, numbers: dict[str, Numbers]) -> None:
        """Append a chunk, with `numbers` by field name of Flat."""
        self._ids.write_batch(pa.record_batch([pa.array(chunk.ids, pa.string())], names=["id"]))
        for name in _LISTS:
            lists: Ragged = getattr(chunk, name)
            self._values[name].write(np.ascontiguousarray(lists.values).tobytes())
            self._arrays[f"{name}.lengths"].append(lists.lengths)
        for name, found in numbers.items():
            self._values[name].write(found.values.tobytes())
            self._arrays[f"{name}.present"].append(found.present)
        self._arrays["first.lengths"].append(np.diff(chunk.first))
        self._arrays["weight"].append(chunk.weight)
        self._arrays["label"].append(chunk.label)
        self._arrays["highest"].append(chunk.highest())
        self._arrays["longest"].append(chunk.longest())

    def close(self) -> None:
        """Write what was collected; the marker last, so that a folder with one is whole and was found good."""
        self._ids.close()
        for file in self._values.values():
            file.close()
        for name, parts in self._arrays.items():
            whole = np.concatenate(parts) if parts else np.zeros(0)
            if name.endswith(".lengths"):
                name, whole = name[: -len(".lengths")], np.concatenate([[0], np.cumsum(whole, dtype=np.int64)])
            np.save(self.folder / f"{name}.npy", whole)
        (self.folder / _DONE).write_text(json.dumps({"format": 1}))


def finished(folder: Path) -> bool:
    return (folder / _DONE).exists()


def opened(folder: Path) -> Flat:
    """Map the arrays of a finished folder into memory."""
    def array(name: str) -> np.ndarray:
        return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))  # as plain arrays: slices of memmaps are slow

    def values(name: str, kind: Any) -> np.ndarray:
        path = folder / f"{name}.values"
        return np.asarray(np.memmap(path, kind, "r")) if path.stat().st_size else np.zeros(0, kind)

    with pa.memory_map(str(folder / "ids.arrow")) as source:
        ids = pa.ipc.open_file(source).read_all().column("id").to_pylist()
    found: dict[str, Any] = {"ids": ids, **{n: array(n) for n in _PLAIN}}
    found |= {n: Ragged(values(n, np.int32), array(n)) for n in _LISTS}
    found |= {n: Numbers(values(n, np.float64), array(f"{n}.present")) for n in _NUMBERS}
    assert found.keys() == {f.name for f in fields(Flat)}
    return Flat(**found)
