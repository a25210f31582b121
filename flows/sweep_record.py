"""`sweeps/NAME/sweep.json`: a sweep's words and the runs they stand for, written once and read by all that name it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import files, runs
from pipeline.errors import UserError, nearest


@dataclass(frozen=True)
class Arm:
    """One run of a sweep: its name, and what `align run` is given beside it."""

    run: str
    words: list[str]


@dataclass(frozen=True)
class Sweep:
    """What sweep.json says: the words that were typed, without jobs, and the runs they stand for."""

    name: str
    words: list[str]
    arms: list[Arm]
    command: str = ""  # that goes on with it, where it is not `align sweep sweep=NAME`


def folder(place: Path, name: str) -> Path:
    return place / "sweeps" / name


def save(place: Path, made: Sweep) -> None:
    data: dict[str, Any] = {"schema": 1, "name": made.name, "words": made.words, "runs": list(map(vars, made.arms))}
    files.write_atomic(folder(place, made.name) / "sweep.json", json.dumps(data, indent=1))


def load(place: Path, name: str) -> Sweep:
    """The sweep of that name. Raises UserError where there is none, or its record is none."""
    path = folder(place, name) / "sweep.json"
    if not runs.NAME.match(name) or not path.is_file():
        known = sorted(found.parent.name for found in (place / "sweeps").glob("*/sweep.json"))
        raise UserError(f"sweep: no sweep named {name!r} in {place}{nearest(name, known)}")
    found = files.parsed_lines(path.read_bytes().replace(b"\n", b" "), name=str, words=list, runs=list)
    try:
        return Sweep(name, found[0]["words"], [Arm(**arm) for arm in found[0]["runs"]])
    except (IndexError, TypeError):
        raise UserError(f"{path}: not a sweep's record; move the folder away and give the sweep's words again"
                        ) from None
