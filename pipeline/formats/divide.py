"""From rows to the four splits (sft, pref, unlabeled, eval), so that no prompt is in two of them.

AlpacaFarm's protocol (Dubois et al. 2023, section 3) splits by prompt into SFT : PREF : unlabeled : eval =
10 : 10 : 20 : 0.8. Where a data set lacks a split, its prompts are taken from another one, decided by a hash of the
first user turn: the same on every machine, in any order of the files, and unmoved when rows are added.
"""

import hashlib
import json
import tempfile
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files
from pipeline.errors import Problems, UserError
from pipeline.formats.splits import SPLITS, Entry, Imported, Limits, Read, Shares, prompt_key
from pipeline.records import Group

_EVAL = SPLITS.index("eval")
# Which split's rows may fill a split, best first: only preferences can be preferences, every row has a prompt.
_SOURCES = {
    "sft": ("sft", "pref"),
    "pref": ("pref",),
    "unlabeled": ("unlabeled", "sft", "pref"),
    "eval": ("eval", "unlabeled", "sft", "pref"),
}
KINDS = ("prompts", "demonstrations", "pairs", "lists", "labels")  # of groups, by their completions and label
LIST, LABEL = 3, 4
_HELD = 2**20  # rows in memory
_SHARED = 6  # words: "hello", "write a poem about love" open many conversations
ELSEWHERE = "prompt belongs to another split"
REPEATED = "same row again"
REPEATED_PROMPT = "same prompt again"
OVER_LIMIT = "over data.format.limits"
UNDESIRABLE = "answer labelled undesirable"


def divide(read: Read, shares: Shares, limits: Limits, needed: Sequence[str] = ()) -> Imported:
    """Put every entry into one split, fill the splits that have none of their own, cut to the limits.

    needed: the splits that rows are for, each with a prompt at least if any can serve there; empty: all, as they fall.

    Entries of one prompt go to one split together; those that cannot serve there are dropped. Reads the rows once and
    keeps some 50 bytes of each, of many on the disk. Raises UserError with what is wrong in the rows, and the ids that
    two rows of one split share.
    """
    problems, dropped, unread = Problems(), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        index = Index(Path(folder))
        for entry in read(problems, dropped):
            index.add(entry)
            unread.update(entry.unread)
        check_ids(index, read, problems)
        problems.stop()
        made, split = decided(index, shares, limits, needed, dropped)

    def groups() -> Iterator[tuple[str, Group]]:
        rows = 0
        for rows, entry in enumerate(read(Problems(), Counter()), 1):
            if rows <= len(split) and (number := int(split[rows - 1])) >= 0:
                yield SPLITS[number], as_of(SPLITS[number], entry.group)
        if rows != len(split):
            raise UserError(f"data.root: {rows} rows on the second reading and {len(split)} on the first: a file was "
                            "changed in between; run the same command again")

    return replace(made, groups=groups, unread=dict(sorted(unread.items())))


def decided(index: "Index", shares: Shares, limits: Limits, needed: Sequence[str], dropped: Counter[str]
            ) -> tuple[Imported, np.ndarray]:
    """What is known without the groups themselves, and (rows,) int8, the place in SPLITS of each row's split, -1 where
    it is left out.
    """
    split = _assign(index, shares, dropped, needed)
    for number, name in enumerate(SPLITS):
        _unique(index, split, number, dropped)
        _cut(index, split, number, getattr(limits, name), dropped)
    prompts = index.column("prompt")
    evaluated, others = prompts[split == _EVAL], prompts[(split >= 0) & (split != _EVAL)]
    del prompts
    others.sort()
    places = np.searchsorted(others, evaluated)
    overlap = (others[places[places < len(others)]] == evaluated[places < len(others)]).sum()
    counts = {name: int((split == number).sum()) for number, name in enumerate(SPLITS)}
    kinds = np.bincount(index.column("kind")[split == SPLITS.index("pref")], minlength=LABEL + 1).tolist()
    left_out = {reason: number for reason, number in sorted(dropped.items()) if number}
    return Imported(counts, left_out, int(overlap), lambda: iter(()),
                    kinds=dict(zip(KINDS, kinds, strict=True))), split


class Index:
    """What deciding needs to know of each row, in columns; what is saved in `folder` comes before what is held."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._clear()

    def _clear(self) -> None:
        self.columns: dict[str, array[Any]] = {name: array(kind) for name, kind in (
            ("prompt", "Q"), ("point", "d"), ("split", "b"), ("fixed", "b"), ("named", "b"), ("undesirable", "b"),
            ("id", "Q"), ("messages", "Q"), ("rank", "d"), ("kind", "b"))}

    def add(self, entry: Entry) -> None:
        group, key = entry.group, entry.key or prompt_key(entry.group)
        turns = json.dumps([[m.role, m.content, *([m.more] if m.more else [])] for m in group.messages])
        row = {"prompt": _mark(key), "point": unit("split", key), "split": SPLITS.index(entry.split),
               "fixed": entry.fixed, "named": entry.named, "undesirable": group.label is False,
               "id": _mark(group.id), "messages": _mark(turns + group.template), "rank": unit("limit", group.id),
               "kind": LABEL if group.label is not None else min(len(group.completions), LIST)}
        for name, value in row.items():
            self.columns[name].append(value)
        if self.folder is not None and len(self.columns["id"]) == _HELD:
            self.save(self.folder, len(self._parts()), durable=False)
            self._clear()

    def save(self, folder: Path, number: int, durable: bool = True) -> None:
        with files.replacing(folder / f"part-{number:05d}.npz", durable) as temporary, temporary.open("wb") as file:
            columns: dict[str, Any] = {name: np.array(column) for name, column in self.columns.items()}
            np.savez(file, **columns)
            file.flush()
            files.note(folder / f"part-{number:05d}.npz", temporary)

    def column(self, name: str) -> np.ndarray:
        """Of all rows; nothing of it is kept."""
        parts = [np.load(part)[name] for part in self._parts()]
        return np.concatenate([*parts, np.array(self.columns[name])])

    def _parts(self) -> list[Path]:
        return [] if self.folder is None else sorted(self.folder.glob("part-*.npz"))


def _assign(index: Index, shares: Shares, dropped: Counter[str], needed: Sequence[str]) -> np.ndarray:
    """(rows,) int8, the place in SPLITS of each row's split, -1 where it is left out."""
    own = index.column("split")
    feeds = _feeds({SPLITS[number] for number in np.unique(own).tolist()}, needed)
    points, of = _grouped(index.column("prompt"))
    here, fixed = np.zeros(len(points), np.int8), np.zeros(len(points), np.int8)
    np.bitwise_or.at(here, of, (1 << own).astype(np.int8))
    np.bitwise_or.at(fixed, of, (index.column("fixed") << own).astype(np.int8))
    points, chosen = index.column("point")[points], np.zeros(len(points), np.int8)
    for pair in np.unique(fixed.astype(np.int16) << 8 | here).tolist():
        places = np.flatnonzero((fixed == pair >> 8) & (here == (pair & 255)))
        for some in (places[at:at + _HELD] for at in range(0, len(places), _HELD)):
            chosen[some] = _choose(points[some], _splits_in(pair >> 8), _splits_in(pair & 255), feeds, shares)
    _give_one(chosen, points, here, feeds, needed)
    split = chosen[of]
    serves = np.array([[to in feeds.get(name, ()) for to in SPLITS] for name in SPLITS])
    elsewhere = ~serves[own, split]
    stays = elsewhere & (index.column("fixed") == 1)
    split = np.where(stays, own, np.where(elsewhere, -1, split)).astype(np.int8)
    dropped[ELSEWHERE] += int((split < 0).sum())
    undesirable = (split == SPLITS.index("sft")) & (index.column("undesirable") == 1)
    dropped[UNDESIRABLE] += int(undesirable.sum())
    split[undesirable] = -1
    return split


def _grouped(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first, of): the first row with each value, in the values' order, and each row's place among them. np.unique
    gives the same and holds twice as much.
    """
    order = np.argsort(values, kind="stable")
    values = values[order]
    new = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=new[1:])
    del values
    of = np.empty(len(order), np.int32)
    of[order] = np.cumsum(new, dtype=np.int32) - 1
    return order[new], of


def _give_one(chosen: np.ndarray, points: np.ndarray, here: np.ndarray, feeds: dict[str, tuple[str, ...]],
              needed: Sequence[str]) -> None:
    """Give every needed split that has no prompt one that can serve there, of a split that has two at least."""
    for split in needed:
        number = SPLITS.index(split)
        sources = [SPLITS.index(own) for own, fed in feeds.items() if split in fed]
        serves = np.isin(here, [1 << own for own in sources])  # prompts of one kind of row, which all can serve there
        many = np.bincount(chosen, minlength=len(SPLITS)) > 1
        if number not in chosen and (spare := np.flatnonzero(serves & many[chosen])).size:
            chosen[spare[np.argmin(points[spare])]] = number


def _splits_in(bits: int) -> set[str]:
    return {name for number, name in enumerate(SPLITS) if bits >> number & 1}


def _feeds(there: set[str], needed: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """For each split that has rows, the splits its rows go to: its own and those nobody better can fill. Of these the
    needed ones (empty: all); rows that evaluation alone needs keep their own split beside it.
    """
    source = {split: next((s for s in _SOURCES[split] if s in there), "") for split in SPLITS}
    fed = {split: tuple(s for s in SPLITS if source[s] == split) for split in there}
    if not needed:
        return fed
    used = {split: tuple(s for s in to if s in needed) for split, to in fed.items()}
    return {split: to if set(to) - {"eval"} else tuple(s for s in SPLITS if s in (*to, split))
            for split, to in used.items()}


def _choose(
    points: np.ndarray, fixed: set[str], own: set[str], feeds: dict[str, tuple[str, ...]], shares: Shares
) -> np.ndarray:
    """The splits of prompts whose rows are of the splits `own`, by their points in [0, 1): eval if one is an evaluation
    prompt, where the user put it, or drawn.
    """
    if "eval" in own:
        return np.full(len(points), _EVAL)
    bound = [split for split in SPLITS if split in fixed and feeds[split] == (split,)]
    options = bound[:1] or [s for s in SPLITS if any(s in feeds[o] for o in own)]
    options = [s for s in options if getattr(shares, s)] or options  # rounding must not fill a split that gets nothing
    weights = [getattr(shares, split) for split in options]
    left, chosen = points * sum(weights), np.full(len(points), -1)
    for split, weight in zip(options, weights, strict=True):
        chosen[(chosen < 0) & (left < weight)] = SPLITS.index(split)
        left = left - weight
    return np.where(chosen < 0, SPLITS.index(options[0]), chosen)


def _unique(index: Index, split: np.ndarray, number: int, dropped: Counter[str]) -> None:
    """Leave out the rows of a split that are there again."""
    rows = np.flatnonzero(split == number)
    # Two rows with one prompt are two demonstrations or pairs, but only one prompt to sample from.
    by_id = SPLITS[number] in ("sft", "pref")
    first, _ = _grouped(index.column("id" if by_id else "messages")[rows])
    again = np.delete(rows, first)
    dropped[REPEATED if by_id else REPEATED_PROMPT] += len(again)
    split[again] = -1


def _cut(index: Index, split: np.ndarray, number: int, limit: int | None, dropped: Counter[str]) -> None:
    rows = np.flatnonzero(split == number)
    if limit is not None and len(rows) > limit:
        over = rows[np.argsort(index.column("rank")[rows], kind="stable")[limit:]]
        dropped[f"{OVER_LIMIT}.{SPLITS[number]}"] += len(over)
        split[over] = -1


def check_ids(index: Index, read: Read, problems: Problems) -> None:
    """Every id of the rows' own that two rows of one split share. Reads the rows again where there is one."""
    named, marks = index.column("named") == 1, index.column("id")
    marks &= ~np.uint64(len(SPLITS) - 1)
    marks |= index.column("split").view(np.uint8)
    ordered = np.sort(marks[named])
    if not (ordered[1:] == ordered[:-1]).any():
        return
    rows = np.flatnonzero(named)
    _, first, of = np.unique(marks[named], return_index=True, return_inverse=True)
    before = rows[first[of.reshape(-1)]]
    again = dict(zip(rows[before != rows].tolist(), before[before != rows].tolist(), strict=True))
    if not again:
        return
    where: dict[int, str] = {}
    wanted = set(again.values())
    for number, entry in enumerate(read(Problems(), Counter())):
        if number in wanted:
            where[number] = entry.where
        if number in again:
            problems.add(f"{entry.where}: id {entry.group.id!r} is used before at {where[again[number]]}, expected "
                         "each id once; rename it or leave the ids out")


def as_of(split: str, group: Group) -> Group:
    if split == "pref":
        return group
    if split == "sft":
        return replace(group, completions=group.completions[:1], label=None, rationale=None)
    return replace(group, completions=(), label=None, rationale=None)


def full_key(group: Group) -> str:
    """The prompt as text, symbols kept: NFKC, lower case, single spaces. The opening stands for a conversation, so that
    two depths of it stay on one side; an opening of fewer than _SHARED words is many people's, there all turns count.
    """
    texts = [m.content for m in group.messages if m.role != "system"]
    plain = [" ".join(unicodedata.normalize("NFKC", text).lower().split()) for text in texts]
    return plain[0] if plain[0].count(" ") + 1 >= _SHARED else "\x1f".join(plain)


def _mark(text: str) -> int:
    """64 bits that stand for a text: two of a million share them with probability 3e-8."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def unit(*parts: str) -> float:
    """A number in [0, 1) from texts, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
