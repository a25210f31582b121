"""Data as people have them: every kind of file (reader.py), every shape of row (shapes/), recognised by its keys.

A row's shape is that of pipeline/formats/shapes with the most of its keys in the row; what was read as what, and the
keys that nothing reads, are counted. Rows that are wrong are refused by file and line, or left out and counted
(data.on_bad_row=drop); rows that are as their data set means them and teach nothing (a tie, an empty answer, two equal
sides, a broken transcript) are left out and counted. rows + further examples of a row = kept + left out.
"""

import functools
import importlib
import pkgutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import hub
from pipeline.config import build, load_plugin, problems_of, setting
from pipeline.errors import Problems, UserError
from pipeline.formats import hh, lines, reader, splits, staged, turns
from pipeline.formats.contract import Example, Format, Left, Shape
from pipeline.formats.divide import REPEATED, as_of, check_ids, decided, divide, full_key, unit
from pipeline.formats.lines import Row
from pipeline.formats.reader import EXPECTED, Source
from pipeline.formats.splits import SPLITS, Entry, Imported, Limits, Shares
from pipeline.formats.staged import State
from pipeline.records import Group, as_json

SHAPES = "pipeline.formats.shapes"
NOT_ASKED = "of the kind that data.format.only leaves out"
OVER, SHARE = "over the limit of its source", "outside the share of its source (weight)"
_REASONS = 10  # kinds of bad rows that are told apart


@dataclass(frozen=True)
class Settings:
    """What is read, and what becomes of it."""

    sources: tuple[dict[str, Any], ...] = ()  # several places instead of data.root: {path, weight, limit, files, ...}
    columns: dict[str, str | None] = field(default_factory=dict)  # our name -> the row's; null: a key to leave unread
    on_bad_row: str = setting("refuse", choices=("refuse", "drop"))  # a row that is wrong
    files: str | None = None  # glob under a folder; null: every file of a kind that is read
    config: str | None = None  # of a hub's data set
    split: str | None = None  # of a hub's or a saved data set; null: all
    sft: str | None = None  # files of demonstrations: glob under the root; no other file is read then
    pref: str | None = None  # files of pairs, lists or labelled answers: likewise
    unlabeled: str | None = None  # files of prompts to sample from: likewise
    eval: str | None = None  # files of prompts to evaluate on: likewise
    turns: str = setting("last", choices=("last", "all"))  # of a conversation: the answers to learn from, a group each
    lists: str = setting("keep", choices=("keep", "best_worst"))  # of ranked answers: all of them, or a pair of two
    only: str = setting("all", choices=("all", "pairs", "labels"))  # of preferences: which stay where a set has both
    ties: str = setting("drop", choices=("drop", "keep"))  # answers whose scores prefer neither, or the other one
    labels: dict[str, bool] = field(default_factory=dict)  # words of a label -> whether they mean desirable
    prompt_words: int = setting(8, low=1)  # of plain text: how many words are the prompt
    needed: tuple[str, ...] = setting((), choices=SPLITS)  # splits that the recipe uses; none named: all
    shares: Shares = field(default_factory=Shares)
    limits: Limits = field(default_factory=Limits)

    def check(self) -> list[tuple[str, str]]:
        return [(key, text.strip()) for i, one in enumerate(self.sources) for key, _, text in
                (problem.partition(":") for problem in problems_of(Source, one, f"sources[{i}]"))]


def sources_of(root: Path, settings: Settings) -> list[tuple[Source, str]]:
    """The places that are read, each with the split the user gave it ('': its rows say)."""
    if settings.sources:
        return [(build(Source, one, f"data.sources[{i}]"), "") for i, one in enumerate(settings.sources)]
    one = Source(str(root), settings.files, settings.config, settings.split)
    named = {split: getattr(settings, split) for split in SPLITS}
    return [(replace(one, files=glob), split) for split, glob in named.items() if glob is not None] or [(one, "")]


def files(root: Path, settings: Settings) -> list[Path]:
    """The files `read` will read, each once. Raises UserError with every place that has none."""
    found, problems = dict[Path, None](), list[str]()
    for source, split in sources_of(root, settings):
        try:
            found |= dict.fromkeys(reader.files(source, f"data.format.{split}" if split else "data.root"))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return list(found)


def names(root: Path, settings: Settings) -> list[str]:
    """The hub's data sets, with their commits."""
    return [f"{source.path} {source.config or ''}".strip() for source, _ in sources_of(root, settings)
            if source.path.startswith(hub.DATA)]


def read(root: Path, settings: Settings) -> Imported:
    """All groups by split. Raises UserError with every wrong row, unless those are left out."""
    files(root, settings)
    tally = Counter[str]()
    made = divide(partial(_entries, root, settings, tally), settings.shares, settings.limits, settings.needed)
    return replace(made, facts=dict(sorted(tally.items())), compared=True)


def preferences(root: Path, settings: Settings) -> tuple[list[Group], Counter[str]]:
    """Every pair and list of the rows, of any split, and what is left out. Raises UserError with every wrong row."""
    files(root, settings)
    problems, dropped, found = Problems(), Counter[str](), dict[str, Group]()
    for entry in _entries(root, settings, Counter(), problems, dropped):
        reason = "no preference" if len(entry.group.completions) < 2 else REPEATED if entry.group.id in found else ""
        dropped.update(filter(None, [reason]))
        found |= {} if reason else {entry.group.id: entry.group}
    problems.stop()
    return list(found.values()), dropped


def resumed(root: Path, settings: Settings, folder: Path) -> Imported:
    """As `read`, of rows that stay in the folder: what is there is not read again. Its `groups` may leave out so many
    first ones of each split.
    """
    files(root, settings)
    state, index = staged.filled(folder, partial(_by_row, root, settings))
    problems = Problems()
    check_ids(index, partial(_entries, root, settings, Counter()), problems)
    problems.stop()
    made, split = decided(index, settings.shares, settings.limits, settings.needed, state.dropped)

    def groups(written: Mapping[str, int] | None = None) -> Iterator[tuple[str, Group]]:
        done = written or dict.fromkeys(SPLITS, 0)
        places = [np.flatnonzero(split == number) for number in range(len(SPLITS))]
        left = [rows[done[name]:] for name, rows in zip(SPLITS, places, strict=True)]
        first = min((int(rows[0]) for rows in left if len(rows)), default=len(split))
        begin = [int(rows[0]) if len(rows) else len(split) for rows in left]
        for number, group in staged.groups(folder, first):
            place = int(split[number])
            if place >= 0 and number >= begin[place]:
                yield SPLITS[place], as_of(SPLITS[place], group)

    return replace(made, groups=groups, facts=dict(sorted(state.facts.items())), compared=True,
                   unread=dict(sorted(state.unread.items())))


def _entries(root: Path, settings: Settings, tally: Counter[str], problems: Problems, dropped: Counter[str]
             ) -> Iterator[Entry]:
    tally.clear()  # the rows may be read again
    for entries in _by_row(root, settings, State(facts=tally, dropped=dropped), problems):
        yield from entries


def _by_row(root: Path, settings: Settings, state: State, problems: Problems) -> Iterator[list[Entry]]:
    """The entries of each row behind the state, which goes along."""
    refuse, tally, dropped = settings.on_bad_row == "refuse", state.facts, state.dropped
    bad, seen = problems if refuse else Problems(most=1), state.keys
    for number, (source, split) in enumerate(sources_of(root, settings)):
        if number < state.source:
            continue
        if number > state.source:
            state.source, state.taken, state.where = number, 0, ""
        columns = {**settings.columns, **source.columns}
        for row in reader.rows(source, problems, bad, state.where):
            tally["rows"] += 1 + _count(bad, dropped, refuse)
            if state.taken == source.limit:
                dropped[OVER] += 1
                break  # the others are not read
            state.taken, state.where = state.taken + 1, row.where
            seen.update(key for key in columns.values() if key is not None and _at(row.data, key) is not None)
            if columns:
                row = replace(row, data=_renamed(row.data, columns))
            made = list(_entries_of(row, split, settings, tally, bad, dropped))
            kept = [one for one in made if source.weight == 1 or _share_of(one.key) < source.weight]
            dropped[SHARE] += len(made) - len(kept)
            _count(bad, dropped, refuse)
            yield kept
        tally["rows"] += _count(bad, dropped, refuse)
    for ours, theirs in settings.columns.items():
        if theirs is not None and theirs not in seen:
            problems.add(f"data.columns.{ours}: no row has a {theirs!r}, expected a key of the rows")


def _count(bad: Problems, dropped: Counter[str], refuse: bool) -> int:
    """Wrong rows that are left out as reasons: what was said of the first of them, without the place. How many."""
    number = 0 if refuse else bad.number
    if number:
        reason = f"wrong row: {bad.shown[0].partition(': ')[2].partition(',')[0][:60]}"
        known = sum(one.startswith("wrong row") for one in dropped)
        dropped[reason if reason in dropped or known < _REASONS else "wrong row"] += number
        bad.number = 0
        bad.shown.clear()
    return number


def _entries_of(row: Row, split: str, settings: Settings, tally: Counter[str], bad: Problems, dropped: Counter[str]
                ) -> Iterator[Entry]:
    data = row.data
    found = shape_of(tuple(key for key, value in data.items() if value is not None), tuple(data))
    if found is None:
        bad.add(f"{row.where}: has the keys {', '.join(map(str, data)) or '(none)'}, which no shape has; expected e.g. "
                "prompt + chosen + rejected (docs/data.md); give yours our names with data.columns={prompt: KEY}, or "
                "name the files of the data with data.format.files=GLOB")
        return
    shape, keys = found
    unread = tuple(_unread(data, shape, keys))
    tally[f"read as {shape.name}"] += 1
    try:
        examples = shape.read(data, settings)
        made = [one if isinstance(one, Left) else _entry(row, one, split, settings, number if len(examples) > 1 else 0)
                for number, one in enumerate(examples, 1)]
    except (Left, hh.Irregular) as reason:
        dropped[str(reason)] += 1
    except ValueError as error:
        bad.add(f"{row.where}: {error}")
    else:
        tally["further examples of a row"] += len(made) - 1
        tally.update(f"put right: {one.fixed}" for one in examples if isinstance(one, Example) and one.fixed)
        tally.update(f"kept: {one.kept}" for one in examples if isinstance(one, Example) and one.kept)
        for entry in made:
            if isinstance(entry, Left):
                dropped[str(entry)] += 1
            else:
                yield replace(entry, unread=(*entry.unread, *unread)) if unread else entry
                unread = ()  # once for a row


def _entry(row: Row, example: Example, split: str, settings: Settings, number: int) -> Entry | Left:
    if problem := splits.message_problem(example.prompt):
        raise ValueError(f"prompt: {problem}")
    answers, scores = example.answers, example.scores
    if fault := splits.fault_of([answer.content or answer.more for answer in answers]):
        return Left(splits.FAULTS[fault])
    for problem in (splits.text_problem(answer.content or answer.more) for answer in answers):
        if problem:
            raise ValueError(f"an answer {problem}")
    if settings.lists == "best_worst" and len(answers) > 2:
        answers, scores = [answers[0], answers[-1]], [scores[0], scores[-1]]
    own = example.id or turns.row_id(row.data)
    named = bool(own) and settings.on_bad_row == "refuse"
    stem = lines.stem(row.file)
    id = f"{stem}/{own}" + (f"/{number}" if number else "") if named else ""
    group = splits.group_of(example.prompt, [a.content for a in answers], example.label, example.dataset or stem, id,
                            [a.more for a in answers], example.template or turns.template(row.data),
                            example.rationale if len(answers) == 2 else "", scores,
                            "" if example.target is None else as_json(example.target))
    labelled = example.label is not None
    if {"pairs": labelled, "labels": len(answers) > 1, "all": False}[settings.only]:
        return Left(NOT_ASKED)
    kind = "pref" if len(answers) > 1 or labelled else "sft" if answers else "unlabeled"
    if (split == "sft" and len(answers) != 1) or (split == "pref" and kind != "pref"):
        wanted = "one answer" if split == "sft" else "two answers or more, or a label"
        raise ValueError(f"in data.format.{split}: has {len(answers)} answers, expected {wanted}")
    held_out = lines.is_test(row.file) or example.split == "eval"
    return Entry(row.where, group, split or ("eval" if held_out else kind), fixed=bool(split), named=named,
                 unread=example.unread, key=full_key(group))


def _renamed(data: dict[str, Any], columns: dict[str, str | None]) -> dict[str, Any]:
    """The row with our names for its keys; {prompt: a.b} is the key b of the mapping a."""
    rest = {key: value for key, value in data.items() if key not in columns and key not in columns.values()}
    return rest | {ours: _at(data, theirs) for ours, theirs in columns.items() if theirs is not None}


def _at(data: dict[str, Any], key: str) -> Any:
    if key in data:
        return data[key]
    name, _, rest = key.partition(".")
    return _at(data[name], rest) if rest and isinstance(data.get(name), dict) else None


def _unread(data: dict[str, Any], shape: Shape, keys: tuple[str, ...]) -> Iterator[str]:
    """The keys of a row that nothing reads: of several that may hold the prompt, all but the one that does."""
    prompt = turns.prompt_key(data)
    others = {key for key in turns.PROMPTS if key not in (prompt, *keys, *({"input"} & {*shape.reads}))}
    known = {*keys, *shape.reads, *turns.BESIDE}
    yield from (key for key, value in data.items() if value is not None and (key not in known or key in others))


@functools.cache
def shapes() -> tuple[Shape, ...]:
    """Every shape there is a file for, by name."""
    package = importlib.import_module(SHAPES)
    found = sorted(one.name for one in pkgutil.iter_modules(package.__path__))
    return tuple(load_plugin(f"{SHAPES}.{name}", "data.format", Shape) for name in found)


@functools.lru_cache(maxsize=4096)
def shape_of(filled: tuple[str, ...], keys: tuple[str, ...]) -> tuple[Shape, tuple[str, ...]] | None:
    """The shape of a row with these keys, of which `filled` are not null, and those that told it; None: of none."""
    found = [((len(set(one) & set(filled)), len(one)), shape, one) for shape in shapes() for one in shape.needs
             if set(one) <= set(keys)]
    best = max(found, key=lambda each: each[0], default=None)
    return None if best is None or not best[0][0] else (best[1], best[2])


def _share_of(key: str) -> float:
    """A number in [0, 1) that a prompt has, whatever source it is in."""
    return unit("share", key)


FORMAT = Format(Settings, EXPECTED, files, read, resumed=resumed, sources=names,
                rootless=lambda settings: bool(settings.sources))
