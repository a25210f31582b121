"""Tables of groups -> training examples: ids as int32 arrays, checked once against the model before the first step."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import clock
from pipeline.columns import Source
from pipeline.errors import Problems, UserError
from pipeline.lm import arrays, mapped
from pipeline.lm.arrays import Chunk, Numbers, Ragged
from pipeline.lm.mapped import Flat
from pipeline.lm.side_tables import SideNumbers, SideTables

_SHOWN = 5  # problems of one kind named one by one
_KEPT = "kept.npy"  # places of the groups that are replayed


@dataclass(frozen=True)
class Example:
    """One group as the training core sees it. Completion 0 is the preferred one."""

    id: str
    prompt: np.ndarray  # (P,) int32, P >= 1
    completions: tuple[np.ndarray, ...]  # each (T_k,) int32, T_k >= 1
    weight: float = 1.0
    label: bool | None = None
    ref_logps: tuple[float, ...] | None = None  # nats, one per completion
    previous_logps: tuple[float, ...] | None = None  # nats, under the policy the iteration began with
    scores: tuple[float, ...] | None = None  # one per completion
    prompts: tuple[np.ndarray, ...] | None = None  # one per completion, where they do not share `prompt`
    rationale: "Example | None" = None  # why completion 0 is better: a prompt and one completion; where asked for

    def prompt_of(self, k: int) -> np.ndarray:
        """(P_k,) int32, the prompt completion k answers."""
        return self.prompt if self.prompts is None else self.prompts[k]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt + completion row."""
        rows = [len(self.prompt_of(k)) + len(c) for k, c in enumerate(self.completions)]
        return max(rows if self.rationale is None else [*rows, self.rationale.longest])

    @property
    def completion_tokens(self) -> int:
        return sum(len(c) for c in self.completions)


def columns(example: Example, keep: Iterable[int]) -> Example:
    """The example with completions `keep`, in that order."""
    chosen = tuple(keep)

    def some(values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        return None if values is None else tuple(values[k] for k in chosen)

    return replace(example, completions=tuple(example.completions[k] for k in chosen), prompts=some(example.prompts),
                   ref_logps=some(example.ref_logps), previous_logps=some(example.previous_logps),
                   scores=some(example.scores))


@dataclass(frozen=True)
class Examples(Sequence[Example]):
    """The examples of a table, made from its mapped arrays as they are asked for."""

    flat: mapped.Flat
    rows: np.ndarray | None = None  # which of them, in this order; None = all
    cut: Callable[[Example], Example] | None = None  # what is done to each

    def __len__(self) -> int:
        return len(self.flat.ids) if self.rows is None else len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(len(self))[i]]
        if not 0 <= i < len(self):
            raise IndexError(i)
        made = example(self.flat, i if self.rows is None else int(self.rows[i]), self.flat.numbers)
        return made if self.cut is None else self.cut(made)


def example(of: Flat | Chunk, g: int, known: Mapping[str, Numbers]) -> Example:
    """Group `g` of a table or of a part of one. known: field of Example -> numbers of all completions."""
    low, high = int(of.first[g]), int(of.first[g + 1])
    prompt, places = _list(of.prompts, g), range(low, high)
    own = bool(of.own.starts[high] > of.own.starts[low])
    numbers = {name: tuple(one.values[low:high].tolist()) for name, one in known.items() if one.present[g]}
    why = _list(of.rationales, g)
    return Example(
        id=of.ids[g], prompt=prompt, completions=tuple(_list(of.tokens, c) for c in places),
        rationale=Example(of.ids[g], _list(of.questions, g), (why,)) if len(why) else None,
        weight=float(of.weight[g]), label=None if of.label[g] < 0 else bool(of.label[g]),
        prompts=tuple(p if len(p) else prompt for p in (_list(of.own, c) for c in places)) if own else None, **numbers)


def _list(lists: Ragged, i: int) -> np.ndarray:
    return lists.values[lists.starts[i]:lists.starts[i + 1]]


def of_chunk(chunk: Chunk) -> list[Example]:
    """The groups of a chunk, without numbers. Raises UserError where some are unfit for training."""
    problems = Problems(_SHOWN)
    problems.add(*chunk_problems(chunk, None))
    problems.stop()
    return [example(chunk, g, {}) for g in range(len(chunk.ids))]


@clock.spending(clock.LOAD)
def load(sources: Sequence[Source], folder: Path, beside: SideTables | None = None,
         stop_ids: Iterable[int] | None = None, weights: Sequence[float] = (), rationales: bool = False) -> Examples:
    """Read tokenised tables into arrays under `folder`, unless they are there already, and map them.

    weights: a factor on the weights of each table's groups; empty: 1. rationales: read them, where there are any.
    Raises UserError naming an id that occurs twice, rows without ids, with empty completions, with a completion that
    says finish_reason "stop" and does not end with one of `stop_ids`, and tables without the log-probs that a side
    table should have.
    """
    if weights and len(weights) != len(sources):
        raise UserError(f"train.weights: {len(weights)} numbers for {len(sources)} tables of "
                        "groups, expected one for each, or an empty list")
    beside = beside or SideTables()
    if not mapped.finished(folder):
        _fill(sources, folder, beside, stop_ids, weights or (1.0,) * len(sources), rationales)
    return Examples(mapped.opened(folder), np.load(folder / _KEPT) if beside.replay else None)


def _fill(sources: Sequence[Source], folder: Path, beside: SideTables, stop_ids: Iterable[int] | None,
          weights: Sequence[float], rationales: bool) -> None:
    stops = None if stop_ids is None else np.array(sorted(stop_ids))
    problems, ids, kept = Problems(_SHOWN), list[tuple[int, pa.Array]](), list[np.ndarray]()
    writer = mapped.Writer(folder)
    for index, (source, factor) in enumerate(zip(sources, weights, strict=True)):
        side, at, seen = SideNumbers(source, beside), 0, 0
        for chunk in arrays.read(source.path, beside.score, rationales):
            problems.add(*chunk_problems(chunk, stops))
            writer.add(chunk, chunk.weight * factor * side.weights(chunk, at), side.numbers(chunk, at))
            kept.append(side.kept(chunk, at))
            at, seen = at + int(chunk.first[-1]), seen + len(chunk.ids)
            ids.append((index, pa.array(chunk.ids, pa.string()).filter(pa.array(kept[-1]))))
        problems.add(*side.missing(seen))
    problems.add(*_twice(ids))
    if not ids:
        problems.add(f"{' and '.join(str(s.path) for s in sources)}: no groups to train on, expected at least one")
    problems.stop()
    if beside.replay:
        np.save(folder / _KEPT, np.flatnonzero(np.concatenate(kept)))
    writer.close()


def _twice(ids: Sequence[tuple[int, pa.Array]]) -> Iterator[str]:
    """A message where an id occurs twice: it would be trained on twice. ids: those of parts of table 0, 1 ..."""
    every = pa.chunked_array([part for _, part in ids], pa.string())
    if pc.count_distinct(every).as_py() == len(every):
        return
    counts = pc.value_counts(every)
    name = counts.field("values")[int(np.argmax(counts.field("counts")))]
    places = [index for index, part in ids for _ in range(pc.sum(pc.equal(part, name)).as_py() or 0)]
    yield (f"groups: id {name.as_py()!r} occurs in input {places[0]} and in input {places[1]} (from 0, in recipe "
           "order); prompts of different iterations must be disjoint, a table given only once")


def chunk_problems(chunk: arrays.Chunk, stops: np.ndarray | None) -> Iterator[str]:
    """What makes rows unfit for training, as messages naming the group."""
    number, bare = np.diff(chunk.first), chunk.prompts.lengths == 0
    empty = chunk.tokens.lengths == 0
    some = np.flatnonzero(~empty & chunk.stopped)
    last = chunk.tokens.values[chunk.tokens.starts[some + 1] - 1]
    off = np.zeros(len(some), bool) if stops is None else ~np.isin(last, stops)
    wrong = dict(zip(some[off].tolist(), last[off].tolist(), strict=True))
    bad = {chunk.group_of(c) for c in (*np.flatnonzero(empty).tolist(), *wrong)}
    for g in sorted(bad | set(np.flatnonzero(bare | (number == 0)).tolist())):
        name, low, high = f"group {chunk.ids[g]!r}", int(chunk.first[g]), int(chunk.first[g + 1])
        if bare[g]:
            yield f"{name}: no prompt ids, expected a tokenised table (stage tokenize)"
        elif number[g] == 0:
            yield f"{name}: no completion, expected at least one"
        else:
            yield from (f"{name}: completion {c - low} has no tokens, expected at least one"
                        for c in range(low, high) if empty[c])
            yield from (f"{name}: completion {c - low} has finish_reason stop but ends with id {wrong[c]}, "
                        f"expected one of the stop ids {stops.tolist() if stops is not None else []}"
                        for c in range(low, high) if c in wrong)


def check_fits(examples: Sequence[Example], vocabulary: int, context: int | None) -> None:
    """Raise UserError where an id is outside the embedding or a row longer than the model's context."""
    problems = Problems(_SHOWN)
    for i, highest, longest in _extents(examples):
        if highest >= vocabulary:
            problems.add(f"group {examples[i].id!r}: token id {highest}, but the model has a vocabulary of "
                          f"{vocabulary}; the table was made with another tokenizer")
        if context is not None and longest > context:
            problems.add(f"group {examples[i].id!r}: {longest} tokens, but the model's context is {context}; "
                          "lower max_prompt_tokens or max_completion_tokens of stage tokenize")
    problems.stop()


def _extents(examples: Sequence[Example]) -> Iterator[tuple[int, int, int]]:
    """(place, largest token id, tokens of the longest row) of every example."""
    if not isinstance(examples, Examples):
        for i, e in enumerate(examples):
            both = [e] if e.rationale is None else [e, e.rationale]
            parts = (part for one in both for part in (one.prompt, *one.completions, *(one.prompts or ())))
            yield i, max(int(part.max()) for part in parts), e.longest
        return
    rows = slice(None) if examples.rows is None else examples.rows
    yield from zip(range(len(examples)), examples.flat.highest[rows].tolist(), examples.flat.longest[rows].tolist(),
                   strict=True)


def ids_of(examples: Sequence[Example]) -> Sequence[str]:
    if not isinstance(examples, Examples):
        return [e.id for e in examples]
    ids = examples.flat.ids
    return ids if examples.rows is None else [ids[i] for i in examples.rows]


def subset(examples: Sequence[Example], places: Sequence[int]) -> Sequence[Example]:
    """The examples at `places`, in that order."""
    if not isinstance(examples, Examples):
        return [examples[i] for i in places]
    wanted = np.asarray(places, np.int64)
    return replace(examples, rows=wanted if examples.rows is None else examples.rows[wanted])


def shaped(examples: Sequence[Example], cut: Callable[[Example], Example]) -> Sequence[Example]:
    """The examples, each as `cut` makes it."""
    if not isinstance(examples, Examples):
        return [cut(e) for e in examples]
    assert examples.cut is None, "cut once"
    return replace(examples, cut=cut)


def normalised_weights(batch: Sequence[Example], normalise: str) -> list[float]:
    """What each group's loss is multiplied by, so that the sum over the global batch is its loss.

    "groups": sum of w L / sum of w. "tokens": sum of w L / sum of w n, n the group's scored completion tokens.
    """
    sizes = {"groups": [1] * len(batch), "tokens": [e.completion_tokens for e in batch]}[normalise]
    total = sum(e.weight * n for e, n in zip(batch, sizes, strict=True))
    if not total > 0 or any(e.weight < 0 for e in batch):
        raise UserError(f"weights: those of a batch of {len(batch)} groups (first {batch[0].id!r}) add up to {total:g} "
                        "or are negative; expected weights of at least 0, some above")
    return [e.weight / total for e in batch]
