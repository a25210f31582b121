"""Tables of groups -> training examples: ids as int32 arrays, checked once against the model before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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


def load(groups: Path, beside: Beside | None = None) -> list[Example]:
    """Read a tokenised table. Raises UserError naming rows without ids, with empty completions, or without the
    log-probs that a table beside it should have.
    """
    beside = beside or Beside()
    reference, previous, scored = (_by_tokens(t) for t in (beside.reference, beside.previous, beside.scored))
    examples: list[Example] = []
    problems: list[str] = []
    unmatched: dict[Path, list[str]] = {}
    for group in tables.read(groups):
        problems.extend(row_problems(group))
        sources = []
        for found, paths in ((reference, beside.reference), (previous, beside.previous)):
            source = found.get(_key(group)) if paths else None
            if paths and source is None:
                unmatched.setdefault(paths[0], []).append(group.id)
            sources.append(source)
        values = _scores(group, beside.score) or _scores(scored.get(_key(group)), beside.score)
        examples.append(replace(example(group), previous_logps=_logps(sources[1]), scores=values,
                                **({"ref_logps": _logps(sources[0])} if beside.reference else {})))
    for path, ids in unmatched.items():
        problems.append(f"{path}: no reference log-probs for {len(ids)} groups of {groups}, first {ids[0]!r}; run "
                        "reference_logprobs on exactly this table")
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
        highest = max(int(part.max()) for part in (e.prompt, *e.completions, *(e.prompts or ())))
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


def _by_tokens(paths: Sequence[Path]) -> dict[tuple[object, ...], Group]:
    return {_key(group): group for path in paths for group in tables.read(path)}


def _logps(group: Group | None) -> tuple[float, ...] | None:
    """`ref_logp` of every completion, None where one has none."""
    values = [] if group is None else [c.ref_logp for c in group.completions]
    found = tuple(float(v) for v in values if v is not None)
    return found if values and len(found) == len(values) else None


def _scores(group: Group | None, name: str) -> tuple[float, ...] | None:
    """The score `name` of every completion, None where one has none."""
    if group is None or not group.completions or any(name not in c.scores for c in group.completions):
        return None
    return tuple(c.scores[name] for c in group.completions)


def _key(group: Group) -> tuple[object, ...]:
    return (group.prompt_ids, *((c.prompt_ids, c.token_ids) for c in group.completions))


def _shorten(problems: list[str]) -> list[str]:
    more = len(problems) - _SHOWN
    return problems if more <= 0 else [*problems[:_SHOWN], f"... and {more} more like these"]
