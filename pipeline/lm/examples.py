"""Tables of groups -> training examples: ids as int32 arrays, checked once against the model before the first step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.lm import arrays, mapped
from pipeline.records import Group

_SHOWN = 5  # problems of one kind named one by one


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

    def prompt_of(self, k: int) -> np.ndarray:
        """(P_k,) int32, the prompt completion k answers."""
        return self.prompt if self.prompts is None else self.prompts[k]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt + completion row."""
        return max(len(self.prompt_of(k)) + len(c) for k, c in enumerate(self.completions))

    @property
    def completion_tokens(self) -> int:
        return sum(len(c) for c in self.completions)


@dataclass(frozen=True)
class Beside:
    """Tables with numbers of the same groups. Found by token ids, prompt and completions, so a table of other tokens is
    refused instead of silently giving wrong rewards.
    """

    reference: Sequence[Path] = ()  # ref_logp under the reference
    previous: Sequence[Path] = ()  # ref_logp under the policy the iteration began with
    scored: Sequence[Path] = ()  # scores of groups that carry none themselves
    score: str = "reward"  # which of a completion's scores


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
        made = self._example(i if self.rows is None else int(self.rows[i]))
        return made if self.cut is None else self.cut(made)

    def _example(self, g: int) -> Example:
        flat = self.flat
        low, high = int(flat.first[g]), int(flat.first[g + 1])
        prompt, places = flat.prompts[g], range(low, high)
        own = bool(flat.own.starts[high] > flat.own.starts[low])

        def numbers(found: mapped.Numbers) -> tuple[float, ...] | None:
            return tuple(found.values[low:high].tolist()) if found.present[g] else None

        return Example(
            id=flat.ids[g], prompt=prompt, completions=tuple(flat.tokens[c] for c in places),
            weight=float(flat.weight[g]), label=None if flat.label[g] < 0 else bool(flat.label[g]),
            ref_logps=numbers(flat.ref_logps), previous_logps=numbers(flat.previous_logps),
            scores=numbers(flat.scores),
            prompts=tuple(flat.own[c] if len(flat.own[c]) else prompt for c in places) if own else None,
        )


@dataclass
class _Problems:
    """How many there are, and the first few in words."""

    number: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.number += 1
            if len(self.shown) < _SHOWN:
                self.shown.append(text)

    def stop(self) -> None:
        """Raise UserError where there is one."""
        if self.number:
            raise UserError.of(self.shown, _SHOWN, self.number)


def load(groups: Path, folder: Path, beside: Beside | None = None, stop_ids: Iterable[int] | None = None) -> Examples:
    """Read a tokenised table into arrays under `folder`, unless they are there already, and map them.

    Raises UserError naming rows without ids, with empty completions, with a completion that says finish_reason "stop"
    and does not end with one of `stop_ids`, or without the log-probs that a table beside it should have.
    """
    if not mapped.finished(folder):
        _fill(groups, folder, beside or Beside(), stop_ids)
    return Examples(mapped.opened(folder))


def _fill(groups: Path, folder: Path, beside: Beside, stop_ids: Iterable[int] | None) -> None:
    reference = mapped.Elsewhere.of(beside.reference, None)
    previous = mapped.Elsewhere.of(beside.previous, None)
    scored = mapped.Elsewhere.of(beside.scored, beside.score)
    stops = None if stop_ids is None else np.array(sorted(stop_ids))
    problems, unmatched, seen = _Problems(), {"reference": _Problems(), "previous": _Problems()}, 0
    writer = mapped.Writer(folder)
    tables = (("reference", "ref_logps", reference), ("previous", "previous_logps", previous))
    for chunk in arrays.read(groups, beside.score):
        seen += len(chunk.ids)
        problems.add(chunk_problems(chunk, stops))
        numbers = {"ref_logps": chunk.ref_logps, "previous_logps": mapped.nothing(chunk)}
        for name, field_name, table in tables:
            if getattr(beside, name):
                here, numbers[field_name] = table.of_chunk(chunk)
                unmatched[name].add(chunk.ids[g] for g in np.flatnonzero(~here))
        writer.add(chunk, {**numbers, "scores": mapped.either(chunk, scored.of_chunk(chunk)[1])})
    for name, found in unmatched.items():
        if found.number:
            problems.add([f"{getattr(beside, name)[0]}: no reference log-probs for {found.number} groups of {groups}, "
                          f"first {found.shown[0]!r}; run reference_logprobs on exactly this table"])
    if seen == 0:
        problems.add([f"{groups}: no groups to train on, expected at least one"])
    problems.stop()
    writer.close()


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


def row_problems(group: Group) -> list[str]:
    """What makes a row unfit for training, as messages naming the group."""
    if not group.prompt_ids:
        return [f"group {group.id!r}: no prompt ids, expected a tokenised table (stage tokenize)"]
    if not group.completions:
        return [f"group {group.id!r}: no completion, expected at least one"]
    return [f"group {group.id!r}: completion {k} has no tokens, expected at least one"
            for k, c in enumerate(group.completions) if not c.token_ids]


def check_fits(examples: Sequence[Example], vocabulary: int, context: int | None) -> None:
    """Raise UserError where an id is outside the embedding or a row longer than the model's context."""
    problems = _Problems()
    for i, highest, longest in _extents(examples):
        if highest >= vocabulary:
            problems.add([f"group {examples[i].id!r}: token id {highest}, but the model has a vocabulary of "
                          f"{vocabulary}; the table was made with another tokenizer"])
        if context is not None and longest > context:
            problems.add([f"group {examples[i].id!r}: {longest} tokens, but the model's context is {context}; "
                          "lower max_prompt_tokens or max_completion_tokens of stage tokenize"])
    problems.stop()


def _extents(examples: Sequence[Example]) -> Iterator[tuple[int, int, int]]:
    """(place, largest token id, tokens of the longest row) of every example."""
    if not isinstance(examples, Examples):
        for i, e in enumerate(examples):
            yield i, max(int(part.max()) for part in (e.prompt, *e.completions, *(e.prompts or ()))), e.longest
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


def chunks(items: Iterable[Group], size: int) -> Iterator[list[Group]]:
    """Consecutive lists of `size` items, the last one shorter."""
    batch: list[Group] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def example(group: Group) -> Example:
    """One tokenised group as an example, reference log-probs included where every completion has one."""
    own = any(c.prompt_ids for c in group.completions)
    prompt = np.asarray(group.prompt_ids, np.int32)
    return Example(
        id=group.id,
        prompt=prompt,
        completions=tuple(np.asarray(c.token_ids, np.int32) for c in group.completions),
        weight=group.weight,
        label=group.label,
        ref_logps=_logps(group),
        prompts=tuple(np.asarray(c.prompt_ids, np.int32) if c.prompt_ids else prompt for c in group.completions)
        if own else None,
    )


def _logps(group: Group | None) -> tuple[float, ...] | None:
    """`ref_logp` of every completion, None where one has none."""
    values = [] if group is None else [c.ref_logp for c in group.completions]
    found = tuple(float(v) for v in values if v is not None)
    return found if values and len(found) == len(values) else None
