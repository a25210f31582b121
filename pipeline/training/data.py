"""Tables of groups -> training examples: ids as int32 arrays, checked once against the model before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline import tables
from pipeline.records import STOP, Group, UserError

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

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt + completion row."""
        return len(self.prompt) + max(len(c) for c in self.completions)

    @property
    def completion_tokens(self) -> int:
        return sum(len(c) for c in self.completions)


def columns(example: Example, keep: Iterable[int]) -> Example:
    """The example with completions `keep`, in that order."""
    chosen = tuple(keep)
    refs = None if example.ref_logps is None else tuple(example.ref_logps[k] for k in chosen)
    return replace(example, completions=tuple(example.completions[k] for k in chosen), ref_logps=refs)


def load(groups: Path, references: Sequence[Path] = ()) -> list[Example]:
    """Read a tokenised table. Raises UserError naming rows without ids, with empty completions or a bad stop id.

    `references` are tables with the reference log-probs of these groups. They are matched by token ids, prompt and
    completions, so a table of other tokens is refused instead of silently giving wrong rewards.
    """
    known = {_key(g): g for table in references for g in tables.read(table)}
    examples: list[Example] = []
    problems: list[str] = []
    unmatched: list[str] = []
    for group in tables.read(groups):
        problems.extend(row_problems(group))
        source = known.get(_key(group)) if references else group
        if source is None:
            unmatched.append(group.id)
        else:
            examples.append(_example(group, source))
    if unmatched:
        problems.append(f"{references[0]}: no reference log-probs for {len(unmatched)} groups of {groups}, first "
                        f"{unmatched[0]!r}; run reference_logprobs on exactly this table")
    if not problems and not examples:
        problems.append(f"{groups}: no groups to train on, expected at least one")
    if problems:
        raise UserError(*_shorten(problems))
    return examples


def row_problems(group: Group) -> list[str]:
    """What makes a row unfit for training, as messages naming the group."""
    if not group.prompt_ids:
        return [f"group {group.id!r}: no prompt ids, expected a tokenised table (stage tokenize)"]
    if not group.completions:
        return [f"group {group.id!r}: no completion, expected at least one"]
    return [f"group {group.id!r}: completion {k} has no tokens, expected at least one"
            for k, c in enumerate(group.completions) if not c.token_ids]


def missing_stop(examples_table: Path, stop_ids: Iterable[int]) -> list[str]:
    """Rows whose completion says finish_reason "stop" but does not end with a stop id, as messages."""
    stops = frozenset(stop_ids)
    return _shorten([
        f"group {g.id!r}: completion {k} has finish_reason stop but ends with id {c.token_ids[-1]}, "
        f"expected one of the stop ids {sorted(stops)}"
        for g in tables.read(examples_table) for k, c in enumerate(g.completions)
        if c.token_ids and c.finish_reason == STOP and c.token_ids[-1] not in stops
    ])


def check_fits(examples: Iterable[Example], vocabulary: int, context: int | None) -> None:
    """Raise UserError where an id is outside the embedding or a row longer than the model's context."""
    problems = []
    for e in examples:
        highest = max(int(part.max()) for part in (e.prompt, *e.completions))
        if highest >= vocabulary:
            problems.append(f"group {e.id!r}: token id {highest}, but the model has a vocabulary of {vocabulary}; "
                            "the table was made with another tokenizer")
        if context is not None and e.longest > context:
            problems.append(f"group {e.id!r}: {e.longest} tokens, but the model's context is {context}; "
                            "lower max_prompt_tokens or max_completion_tokens of stage tokenize")
    if problems:
        raise UserError(*_shorten(problems))


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
    return _example(group, group)


def _example(group: Group, source: Group) -> Example:
    values = [c.ref_logp for c in source.completions]
    refs = tuple(float(v) for v in values if v is not None)
    return Example(
        id=group.id,
        prompt=np.asarray(group.prompt_ids, np.int32),
        completions=tuple(np.asarray(c.token_ids, np.int32) for c in group.completions),
        weight=group.weight,
        label=group.label,
        ref_logps=refs if values and len(refs) == len(values) else None,
    )


def _key(group: Group) -> tuple[object, ...]:
    return (group.prompt_ids, *(c.token_ids for c in group.completions))


def _shorten(problems: list[str]) -> list[str]:
    more = len(problems) - _SHOWN
    return problems if more <= 0 else [*problems[:_SHOWN], f"... and {more} more like these"]
