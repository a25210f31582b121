"""Reading rows part by part into a folder, so that an import that was killed goes on behind its last whole part.

    groups/part-00000.parquet   the groups of the rows, in their order
    index/part-00000.npz        what deciding needs to know of each (divide.Index)
    state/00000.json            how far the part goes, and everything counted up to there; written last
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import files
from pipeline.errors import Problems
from pipeline.formats.divide import Index
from pipeline.formats.splits import Entry
from pipeline.records import Group

_PART = 8192  # groups of a part, or a few more: a row is in one part


@dataclass
class State:
    """How far the rows are read, and what was counted."""

    source: int = 0  # place in the list of sources
    taken: int = 0  # rows of this source
    where: str = ""  # of the last of them
    facts: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    keys: set[str] = field(default_factory=set)  # of data.columns that a row had
    whole: bool = False  # nothing is left to read


Rows = Callable[[State, Problems], Iterator[list[Entry]]]  # the entries of each row behind a state, which goes along


def filled(folder: Path, rows: Rows) -> tuple[State, Index]:
    """All rows in the folder's parts: those that are there stay, the others are read. Raises UserError with every
    wrong row.
    """
    number, state = _begun(folder)
    problems, held = Problems(), list[Entry]()
    if not state.whole:
        for entries in rows(state, problems):
            held += entries
            for entry in entries:
                state.unread.update(entry.unread)
            if len(held) >= _PART:
                if not problems:
                    _put(folder, number, held, state)
                    number += 1
                held = []
        problems.stop()
        state.whole = True
        _put(folder, number, held, state)
    return state, Index(folder / "index")


def groups(folder: Path, first: int) -> Iterator[tuple[int, Group]]:
    """(its number, the group) from group `first` on; parts before it are not opened."""
    from pipeline import tables

    at = 0
    for part in tables.parts(folder / "groups"):
        if at + (size := tables.rows(part)) > first:
            yield from (pair for pair in enumerate(tables.read_part(part), at) if pair[0] >= first)
        at += size


def _put(folder: Path, number: int, held: list[Entry], state: State) -> None:
    from pipeline import tables

    tables.write_part(folder / "groups", number, (entry.group for entry in held))
    index = Index()
    for entry in held:
        index.add(entry)
    index.save(folder / "index", number)
    plain = {**vars(state), "keys": sorted(state.keys)}
    files.write_sealed(folder / "state" / f"{number:05d}.json", plain)


def _begun(folder: Path) -> tuple[int, State]:
    """The number of the next part, and the state that the last whole one left."""
    found = sorted((folder / "state").glob("[0-9]*.json"))
    plain = files.read_sealed(found[-1]) if found else None
    if plain is None:  # or one that the disk has changed
        shutil.rmtree(folder, ignore_errors=True)
        return 0, State()
    counts = {name: Counter(plain[name]) for name in ("facts", "dropped", "unread")}
    return len(found), State(**{**plain, **counts, "keys": set(plain["keys"])})
