"""The packed layout: one row of unpadded tokens in which every group's prompt stands once.

A group whose completions share a prompt is a tree, `[prompt | c0 | c1 ...]`: a completion sees the prompt and itself,
and its positions go on behind the prompt. Everything that works token by token (projections, MLP, norms) then runs on
the unique tokens of the micro-batch and on nothing else; only attention looks at the tree, segment by segment.

A segment holds inputs, not outputs: the prompt without its last token, and per completion `[last prompt token,
c[:-1]]`. So a completion's predictions are exactly its segment's tokens, no position is shared, and the last token of a
completion, which predicts nothing, is never computed.

A layout can also be a stem: completions of the same groups that come later, because what came first decides which, are
laid out without their prompts and see the stem's keys and values instead (`pack_stem`, then `pack` with it).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.lm import varlen
from pipeline.lm.examples import Example

ALONE = -1  # root of a segment that sees no other
_ROWS = 256  # of a block of attention


@dataclass(frozen=True)
class Segment:
    """`length` consecutive tokens that see themselves causally, and all of segment `root` before."""

    length: int
    root: int = ALONE


class StemCache:
    """Keys and values a layout leaves for another. Not a dict or a dataclass: of those FSDP2 hands layers copies."""

    def __init__(self) -> None:
        self.of: dict[Any, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = {}  # attention module -> segment by segment


@dataclass(frozen=True)
class Packed:
    """G groups as one row of N unique tokens."""

    input_ids: Tensor  # (1, N) int64
    position_ids: Tensor  # (1, N) int64, from 0 in every sequence
    predict: Tensor  # (C,) int64 into N: the positions that predict the completion tokens, completion by completion
    segments: tuple[Segment, ...]  # in the order of the tokens; their lengths add up to N
    sequences: tuple[np.ndarray, ...]  # per completion, group by group: where it stands, with its prompt if that does
    stem: Packed | None = None  # run before: `segments` go on behind its own, and a root may be one of those
    roots: tuple[int, ...] = ()  # of a stem: per group its prompt's segment, ALONE for a prompt of one token
    cache: StemCache = field(default_factory=StemCache)  # of a stem
    windows: set[int] = field(default_factory=set)  # sliding windows that layers asked for
    masks: dict[int | None, Tensor] = field(default_factory=dict)  # window -> band, see `_mask`

    @cached_property
    def spans(self) -> varlen.Spans:
        """Which keys each segment sees, those of the stem first; made once for all layers."""
        before = [s.length for s in self.stem.segments] if self.stem else []
        return varlen.spans_of([s.length for s in self.segments], [s.root for s in self.segments], before,
                               self.input_ids.device)


def pack(examples: Sequence[Example], device: torch.device | str, stem: Packed | None = None) -> Packed:
    """Lay groups out as trees. Completions with prompts of their own become sequences of their own.

    On a `stem` of the same groups the prompts are left out: completions see the stem's, and a gradient reaches them.
    """
    laid, sequences = _Row(), list[np.ndarray]()
    for g, e in enumerate(examples):
        places: dict[int, np.ndarray] = {}
        for prompt, members in _by_prompt(e):
            if stem is not None:
                assert e.prompts is None, "a stem has one prompt of each group"
                root, front = stem.roots[g], np.empty(0, np.int64)
            elif len(members) > 1:
                root, front = laid.prompt(prompt)
            else:
                root, front = ALONE, np.empty(0, np.int64)
            places |= {k: np.concatenate([front, laid.completion(prompt, e.completions[k], root)]) for k in members}
        sequences.extend(places[k] for k in range(len(e.completions)))
    return laid.packed(examples, sequences, device, stem=stem)


def pack_stem(examples: Sequence[Example], device: torch.device | str) -> Packed:
    """Lay groups with one prompt each out so that further completions can grow on it, see `pack`."""
    laid, roots, sequences = _Row(), list[int](), list[np.ndarray]()
    for e in examples:
        assert e.prompts is None, "a stem has one prompt of each group"
        root, front = laid.prompt(e.prompt)
        roots.append(root)
        sequences += [np.concatenate([front, laid.completion(e.prompt, c, root)]) for c in e.completions]
    return laid.packed(examples, sequences, device, roots=tuple(roots))


@dataclass
class _Row:
    """Tokens laid out one behind the other."""

    ids: list[np.ndarray] = field(default_factory=list)
    positions: list[np.ndarray] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    at: int = 0

    def prompt(self, prompt: np.ndarray) -> tuple[int, np.ndarray]:
        """Put all but the last token, if there are more. Returns the segment and where it stands."""
        if len(prompt) == 1:
            return ALONE, np.empty(0, np.int64)
        return len(self.segments), self._put(prompt[:-1], 0, ALONE)

    def completion(self, prompt: np.ndarray, completion: np.ndarray, root: int) -> np.ndarray:
        """Put what of both is not in `root` yet. Returns where it stands."""
        shared = 0 if root == ALONE else len(prompt) - 1
        return self._put(np.concatenate([prompt[shared:], completion[:-1]]), shared, root)

    def _put(self, tokens: np.ndarray, start: int, root: int) -> np.ndarray:
        self.ids.append(tokens)
        self.positions.append(np.arange(start, start + len(tokens)))
        self.segments.append(Segment(len(tokens), root))
        self.at += len(tokens)
        return np.arange(self.at - len(tokens), self.at)

    def packed(self, examples: Sequence[Example], sequences: list[np.ndarray], device: torch.device | str,
               **beside: Any) -> Packed:
        def joined(parts: list[np.ndarray]) -> Tensor:
            return torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(device)

        targets = (len(c) for e in examples for c in e.completions)
        predict = joined([places[-n:] for places, n in zip(sequences, targets, strict=True)])
        return Packed(joined(self.ids)[None], joined(self.positions)[None], predict, tuple(self.segments),
                      tuple(sequences), **beside)


def unique_tokens(example: Example) -> int:
    """Tokens that `pack` lays out for the example: what a forward pass costs."""
    shared = sum((len(members) - 1) * (len(prompt) - 1) for prompt, members in _by_prompt(example))
    return sum(len(example.prompt_of(k)) + len(c) - 1 for k, c in enumerate(example.completions)) - shared


def micro_batches(examples: Sequence[Example], tokens: int, costs: Sequence[int] | None = None,
                  padded: bool = False) -> list[list[int]]:
    """Cut a global batch into micro-batches of at most `tokens` tokens, never splitting a group.

    `costs`: tokens of each group, None = its unique ones.
    Sorted by length, longest first: an out-of-memory shows at once, and a model that has to stay with padded rows
    wastes little. A group that is longer than the budget goes alone. padded: every row counts as its micro-batch's
    longest, as it does in memory where rows are padded: one long row takes no others with it.
    """
    costs = [unique_tokens(e) for e in examples] if costs is None else costs
    cut: list[list[int]] = []
    held = 0
    for i in sorted(range(len(examples)), key=lambda i: (-examples[i].longest, examples[i].id)):
        rows = len(examples[i].completions)
        more = rows * examples[cut[-1][0]].longest if padded and cut else costs[i]
        if cut and held + more <= tokens:
            cut[-1].append(i)
            held += more
        else:
            cut.append([i])
            held = rows * examples[i].longest if padded else costs[i]
    return cut


def _by_prompt(example: Example) -> list[tuple[np.ndarray, list[int]]]:
    """(prompt, the completions that answer it), in order of first appearance."""
    if example.prompts is None:
        return [(example.prompt, list(range(len(example.completions))))]
    found: dict[bytes, tuple[np.ndarray, list[int]]] = {}
    for k, prompt in enumerate(example.prompts):
        found.setdefault(prompt.tobytes(), (prompt, []))[1].append(k)
    return list(found.values())


def attend(query: Tensor, key: Tensor, value: Tensor, packed: Packed, scaling: float | None, window: int | None = None,
           dropout: float = 0.0, module: Any = None) -> Tensor:
    """(1, heads, N, D) attention output; query (1, heads, N, D), key and value (1, kv heads, N, D).

    `window`: a token sees itself and the window - 1 tokens before it, None = all of them. `module`: whose attention it
    is; a stem has keys and values of each.
    """
    sizes = [s.length for s in packed.segments]
    queries, keys, values = (x.split(sizes, dim=2) for x in (query, key, value))
    if packed.roots:
        packed.cache.of[module] = keys, values
    if packed.stem is not None:
        before_keys, before_values = packed.stem.cache.of[module]
        keys, values = (*before_keys, *keys), (*before_values, *values)
    if query.is_cuda and varlen.serves(query, dropout):
        return varlen.attend(query, torch.cat(keys, dim=2), torch.cat(values, dim=2), packed.spans, scaling, window)
    first = len(keys) - len(sizes)
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    for i, segment in enumerate(packed.segments):
        k, v = keys[first + i], values[first + i]
        if segment.root != ALONE:
            k, v = torch.cat([keys[segment.root], k], dim=2), torch.cat([values[segment.root], v], dim=2)
        limit = window if window is not None and window < k.shape[2] else None
        plain = segment.root == ALONE and limit is None
        before = k.shape[2] - segment.length
        for start, end in [(0, segment.length)] if plain else _blocks(segment.length):
            seen = before + end  # keys: behind these a mask hides everything
            mask = None if plain else _mask(packed, end - start, seen, limit, value)
            outputs.append(_attention(queries[i][:, :, start:end], k[:, :, :seen], v[:, :, :seen], mask, dropout,
                                      scaling, grouped))
    return torch.cat(outputs, dim=2)


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scaling: float | None,
               grouped: bool) -> Tensor:
    """Of queries on the keys that `mask` leaves, else causal. No fast kernel of CUDA takes a mask and grouped heads."""
    if mask is not None and grouped and query.is_cuda:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        grouped = False
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout,
                                                   is_causal=mask is None, scale=scaling, enable_gqa=grouped)


def _blocks(length: int) -> list[tuple[int, int]]:
    """A long segment in blocks of rows: a masked product computes what its mask hides, so each leaves out the keys that
    none of its rows sees.
    """
    edges = [*range(0, max(1, length - _ROWS // 2), _ROWS), length]
    return list(itertools.pairwise(edges))


def _mask(packed: Packed, rows: int, columns: int, window: int | None, like: Tensor) -> Tensor:
    """(rows, columns) additive mask for the last `rows` of `columns` tokens.

    Whether a token is seen depends on the distance alone, so every mask is a piece of one band per window, made once
    per micro-batch for all layers: as wide as the longest sequence, as high as a block.
    """
    band = packed.masks.get(window)
    most = max(s.length for s in packed.segments)
    counted = (*packed.stem.segments, *packed.segments) if packed.stem else packed.segments  # by `Segment.root`
    before = most + max([0, *(counted[s.root].length for s in packed.segments if s.root != ALONE)])
    if band is None or band.dtype != like.dtype:
        height = min(most, _ROWS + _ROWS // 2)
        distance = (torch.arange(height, dtype=torch.int32, device=like.device)[:, None] + before
                    - torch.arange(before + height, dtype=torch.int32, device=like.device))
        seen = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        band = torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(~seen, float("-inf"))
        packed.masks[window] = band
    first = before - (columns - rows)
    piece = band[:rows, first:first + columns]
    return piece.contiguous() if piece.is_cuda else piece  # its kernels want 16-byte edges, which any column misses
