"""Prompts in another order than the table's: by score, margin, length, cut answers, disagreement of two scores, or the
change since the iteration before; only those in a range, cut or labelled; and the selection as JSON lines.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.dashboard import samples, tables, written
from flows.dashboard.facts import Row
from flows.dashboard.files import Files, NotHere
from flows.dashboard.tables import Table
from pipeline.columns import KEYS, LOGP
from pipeline.records import LENGTH

BY = ("score", "margin", "length", "truncated", "disagreement", "change")
_MOST = 10_000  # prompts of one export
_LENGTHS = ["completions.list.element.finish_reason", "completions.list.element.token_ids"]


@dataclass(frozen=True)
class Wish:
    """Which prompts are wanted, and in which order. by: one of BY, "" for the table's own order."""

    by: str = ""
    score: str = ""  # the score meant; "": the first
    rising: bool = False
    only: str = ""  # "cut", "noted", or a label
    low: float | None = None  # of the number sorted by
    high: float | None = None


def page(files: Files, name: str, step: str, part: str, start: int, count: int, pieces: bool, wish: Wish) -> Row:
    """As samples.page, in that order: `matching` prompts, each with its `measure`; `by_scores` are those there are."""
    found, table, side = samples.find(files, name, step, part)
    places, values, names = _places(files, name, found, table, side, wish)
    chosen = places[start : start + min(count, samples.MOST_ROWS)]
    content = tables.at(table, chosen)
    shown = samples.shown(files, name, found, table, side, [(i, content[i]) for i in chosen], pieces)
    for group in shown["groups"]:
        group["measure"] = None if values is None else float(values[group["index"]])
    return shown | {"start": start, "matching": len(places), "by_scores": names}


def lines(files: Files, name: str, step: str, part: str, wish: Wish) -> Iterator[str]:
    """The selection, a prompt a line: messages, completions with their scores and marks, labels and note."""
    found, table, side = samples.find(files, name, step, part)
    places = _places(files, name, found, table, side, wish)[0][:_MOST]

    def written_out() -> Iterator[str]:
        for at in range(0, len(places), samples.MOST_ROWS):
            several = places[at : at + samples.MOST_ROWS]
            content = tables.at(table, several)
            shown = samples.shown(files, name, found, table, side, [(i, content[i]) for i in several], False)
            for row in shown["groups"]:
                kept = {k: v for k, v in row.items() if k not in ("prompt_pieces", "index")}
                yield json.dumps({"run": name, "step": step, **kept}, ensure_ascii=False) + "\n"

    return written_out()


def _places(files: Files, name: str, step: Row, table: Table, side: Table | None,
            wish: Wish) -> tuple[list[int], np.ndarray | None, list[str]]:
    """The rows wanted, in order; the number each row of the table has for it; the names of the scores."""
    answers = _answers(files, table, side)
    names = sorted(answers.scores)
    score = wish.score if wish.score in names else names[0] if names else ""
    keep, values = np.ones(len(answers.ids), dtype=bool), None
    if wish.only == "cut":
        keep = np.nansum(answers.cut, axis=1) > 0
    elif wish.only:
        noted = written.sample_notes(files, name, step["name"])
        wanted = [i for i, kept in noted.items() if wish.only == "noted" or wish.only in kept["labels"]]
        keep = np.asarray(pc.is_in(answers.ids, value_set=pa.array(wanted, pa.string())))
    if wish.by:
        values = _measure(files, name, step, answers, wish.by, score)
        keep &= np.isfinite(values)
        keep &= (values >= (-np.inf if wish.low is None else wish.low)) & (values <= (
            np.inf if wish.high is None else wish.high))
    places = np.flatnonzero(keep)
    if values is not None:
        places = places[np.argsort(values[places] if wish.rising else -values[places], kind="stable")]
    return places.tolist(), values, names


def _measure(files: Files, name: str, step: Row, answers: "_Answers", by: str, score: str) -> np.ndarray:
    """(prompts,) the number that is sorted by, NaN where a prompt has none. NotHere where the table cannot have it."""
    if by == "length":
        return _mean(answers.tokens)
    if by == "truncated":
        return np.nansum(answers.cut, axis=1)
    if by not in BY or not score:
        raise NotHere(f"these samples cannot be sorted by {by!r}: expected one of {', '.join(BY)}, and a score")
    values = answers.scores[score]
    if by == "margin":
        return np.fmax.reduce(values, axis=1) - np.fmin.reduce(values, axis=1)
    if by == "disagreement":
        others = [n for n in answers.scores if n != score]
        return _discordant(values, answers.scores[others[0]]) if others else np.full(len(values), np.nan)
    if by == "score":
        return _mean(values)
    before = f"{step['base']}[{step['iteration'] - 1}]"
    _, table, side = samples.find(files, name, before, "groups")
    past = _answers(files, table, side)
    at = pc.index_in(answers.ids, value_set=past.ids).to_numpy(zero_copy_only=False)
    known = np.append(_mean(past.scores[score]) if score in past.scores else np.full(len(past.ids), np.nan), np.nan)
    return _mean(values) - known[np.where(np.isnan(at), len(past.ids), at).astype(int)]


def _mean(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    return np.divide(np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1),
                     out=np.full(len(values), np.nan), where=known.any(axis=1))


def _discordant(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(prompts,) share of the pairs of a prompt's answers that two scores order differently."""
    pairs, wrong = np.zeros(len(one)), np.zeros(len(one))
    for i in range(one.shape[1]):
        for k in range(i):
            product = (one[:, i] - one[:, k]) * (other[:, i] - other[:, k])
            pairs, wrong = pairs + np.isfinite(product), wrong + (product < 0)
    return np.divide(wrong, pairs, out=np.full(len(one), np.nan), where=pairs > 0)


@dataclass(frozen=True)
class _Answers:
    """Numbers of a table's completions, (prompts, most completions of one); NaN where there is none."""

    ids: pa.Array
    scores: dict[str, np.ndarray]
    tokens: np.ndarray
    cut: np.ndarray


def _answers(files: Files, table: Table, side: Table | None) -> _Answers:
    mark = (table.mark, side and side.mark)
    found: _Answers = files.remember(("answers", table.folder, side and side.folder), mark,
                                     lambda: _read(files, table, side))
    return found


def _read(files: Files, table: Table, side: Table | None) -> _Answers:
    chunks = [chunk for part in _parts(table) for chunk in _column(part)]
    counts = np.concatenate([pc.fill_null(pc.list_value_length(chunk), 0).to_numpy() for chunk in chunks])
    flat = [chunk.flatten() for chunk in chunks]
    tokens = np.concatenate([pc.fill_null(pc.list_value_length(pc.struct_field(f, "token_ids")), 0).to_numpy()
                             for f in flat])
    cut = np.concatenate([pc.equal(pc.struct_field(f, "finish_reason"), LENGTH).to_numpy(zero_copy_only=False)
                          for f in flat])
    place = np.arange(len(tokens)) - np.repeat(np.cumsum(counts) - counts, counts)
    at = (np.repeat(np.arange(len(counts)), counts), place)

    def laid(values: np.ndarray) -> np.ndarray:
        found = np.full((len(counts), max(1, counts.max(initial=0))), np.nan)
        found[at] = values
        return found

    ids = tables.ids_of(files, table).combine_chunks()
    numbers = _beside(side, place) if side is not None else _within(table, len(tokens))
    return _Answers(ids, {n: laid(v) for n, v in numbers.items()}, laid(tokens), laid(cut))


def _column(part: Path) -> list[pa.Array]:
    with pq.ParquetFile(part) as file:
        return list(file.read(columns=_LENGTHS)["completions"].chunks)


def _beside(side: Table, place: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of a side table, whose rows are the completions in order."""
    found = pa.concat_tables([pq.read_table(part) for part in _parts(side)],
                             promote_options="default")
    if len(found) != len(place) or not np.array_equal(found["k"].to_numpy(), place):
        raise NotHere("the scores are not all there yet: sort when the step is done")
    return {n: found[n].cast(pa.float64()).to_numpy() for n in found.column_names if n not in (*KEYS, LOGP)}


def _within(table: Table, answers: int) -> dict[str, np.ndarray]:
    """The scores that completions carry themselves."""
    found, at = dict[str, np.ndarray](), 0
    for part in _parts(table):
        with pq.ParquetFile(part) as file:
            rows = file.read(columns=["completions.list.element.scores"])["completions"].to_pylist()
        for completion in (c for row in rows for c in row or ()):
            for name, value in completion["scores"] or ():
                found.setdefault(name, np.full(answers, np.nan))[at] = value
            at += 1
    return found


def _parts(table: Table) -> list[Path]:
    return list(dict.fromkeys(block.part for block in table.blocks))
