"""A table of groups as a few flat arrays on disk, mapped into memory.

    ids.arrow               group ids
    <list>.values, .npy     the int32 ids of prompts, completions, completions' own prompts, rationales and their
                            questions; where each begins
    <number>.values, .present.npy   reference log-probs and scores, one per completion; which groups have them
    weight.npy, label.npy, highest.npy, longest.npy   one per group

What a training run holds of a million groups is what it is looking at, and processes on one machine share it.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import files
from pipeline.lm.arrays import Chunk, Numbers, Ragged

_DONE = "done.json"
_FORMAT = 2


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
    numbers: dict[str, Numbers]  # by NUMBERS
    rationales: Ragged  # G lists
    questions: Ragged


_LISTS = ("prompts", "tokens", "own", "rationales", "questions")
NUMBERS = ("ref_logps", "previous_logps", "scores")  # the fields of an example
_PLAIN = ("first", "weight", "label", "highest", "longest")


class Writer:
    """Appends chunks to the arrays of `folder`."""

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder = folder
        self._values = {n: (folder / f"{n}.values").open("wb") for n in (*_LISTS, *NUMBERS)}
        self._arrays: dict[str, list[np.ndarray]] = {n: [] for n in (
            *(f"{n}.lengths" for n in (*_LISTS, "first")), *(f"{n}.present" for n in NUMBERS), *_PLAIN[1:])}
        self._ids = pa.ipc.new_file(folder / "ids.arrow", pa.schema([("id", pa.string())]))

    def add(self, chunk: Chunk, weight: np.ndarray, numbers: dict[str, Numbers]) -> None:
        """Append a chunk with its (G,) weights, and `numbers` by name."""
        self._ids.write_batch(pa.record_batch([pa.array(chunk.ids, pa.string())], names=["id"]))
        for name in _LISTS:
            lists: Ragged = getattr(chunk, name)
            self._values[name].write(np.ascontiguousarray(lists.values).tobytes())
            self._arrays[f"{name}.lengths"].append(lists.lengths)
        for name, found in numbers.items():
            self._values[name].write(found.values.tobytes())
            self._arrays[f"{name}.present"].append(found.present)
        self._arrays["first.lengths"].append(np.diff(chunk.first))
        self._arrays["weight"].append(weight)
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
        for made in self.folder.iterdir():  # a training of days reads them, another one after a kill
            files.note(made, made)
        files.write_sealed(self.folder / _DONE, {"format": _FORMAT})


def finished(folder: Path) -> bool:
    """Whether `folder` holds a whole table, as this version writes one."""
    done = files.read_sealed(folder / _DONE)
    return done is not None and done.get("format") == _FORMAT


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
    found["numbers"] = {n: Numbers(values(n, np.float64), array(f"{n}.present")) for n in NUMBERS}
    return Flat(**found)
