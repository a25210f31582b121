"""Scores of a slice of a table on disk: what several processes have shared, for the one that puts it together."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pipeline import files
from pipeline.records import Group
from pipeline.rewards.contract import ScoreGroups


def place(work: Path, part: Path, start: int) -> Path:
    """Of the slice of a part that begins with its group number `start`."""
    return work / "slices" / f"{part.stem}-{start}.json"


def write(path: Path, groups: Sequence[Group], scorers: Mapping[str, ScoreGroups]) -> None:
    files.write_sealed(path, {name: scorer(groups) for name, scorer in scorers.items()})


def whole(path: Path) -> bool:
    """Whether it is there, as it was written."""
    return files.read_sealed(path) is not None


def read(path: Path, names: Iterable[str], others: Mapping[str, ScoreGroups]) -> dict[str, ScoreGroups]:
    """A scorer for each of `names`, in their order: one that gives what the slice's file has, else that of `others`."""
    found = files.read_sealed(path) or {}

    def known(name: str) -> ScoreGroups:
        return lambda groups: found[name]

    return {name: known(name) if name in found else others[name] for name in names}
