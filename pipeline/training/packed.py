"""The packed layout: one row of unpadded tokens in which every group's prompt stands once.

A group whose completions share a prompt is a tree, `[prompt | c0 | c1 ...]`: a completion sees the prompt and itself,
and its positions go on behind the prompt. Everything that works token by token (projections, MLP, norms) then runs on
the unique tokens of the micro-batch and on nothing else; only attention looks at the tree, segment by segment.

A segment holds inputs, not outputs: the prompt without its last token, and per completion `[last prompt token,
c[:-1]]`. So a completion's predictions are exactly its segment's tokens, no position is shared, and the last token of a
completion, which predicts nothing, is never computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.training.data import Example

ALONE = -1  # root of a segment that sees no other
_ROWS = 256  # of a block of attention


@dataclass(frozen=True)
class Segment:
    """`length` consecutive tokens that see themselves causally, and all of segment `root` before."""

    length: int
    root: int = ALONE


@dataclass(frozen=True)
class Packed:
    """G groups as one row of N unique tokens."""

    input_ids: Tensor  # (1, N) int64
    position_ids: Tensor  # (1, N) int64, from 0 in every sequence
    predict: Tensor  # (C,) int64 into N: the positions that predict the completion tokens, completion by completion
    segments: tuple[Segment, ...]  # in the order of the tokens; their lengths add up to N
    sequences: tuple[np.ndarray, ...]  # per completion, group by group: where its prompt and it stand, (P + T - 1,)
    windows: set[int] = field(default_factory=set)  # sliding windows that layers asked for
    masks: dict[int | None, Tensor] = field(default_factory=dict)  # window -> band, see `_mask`


def pack(examples: Sequence[Example], device: torch.device | str) -> Packed:
    """Lay groups out as trees. Completions with prompts of their own become sequences of their own."""
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    sequences: list[np.ndarray] = []
    segments: list[Segment] = []
    at = 0

    def put(tokens: np.ndarray, start: int, root: int) -> None:
        nonlocal at
        ids.append(tokens)
        positions.append(np.arange(start, start + len(tokens)))
        segments.append(Segment(len(tokens), root))
        at += len(tokens)

    for e in examples:
        places: dict[int, np.ndarray] = {}
        for prompt, members in _by_prompt(e):
            root, shared, first = ALONE, 0, at
            if len(members) > 1 and len(prompt) > 1:
                root, shared = len(segments), len(prompt) - 1
                put(prompt[:-1], 0, ALONE)
            for k in members:
                begin = at
                put(np.concatenate([prompt[shared:], e.completions[k][:-1]]), shared, root)
                places[k] = np.concatenate([np.arange(first, first + shared), np.arange(begin, at)])
        sequences.extend(places[k] for k in range(len(e.completions)))

    def joined(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(device)

    targets = (len(c) for e in examples for c in e.completions)
    predict = joined([places[-n:] for places, n in zip(sequences, targets, strict=True)])
    return Packed(joined(ids)[None], joined(positions)[None], predict, tuple(segments), tuple(sequences))


def unique_tokens(example: Example) -> int:
    """Tokens that `pack` lays out for the example: what a forward pass costs."""
    shared = sum((len(members) - 1) * (len(prompt) - 1) for prompt, members in _by_prompt(example))
    return sum(len(example.prompt_of(k)) + len(c) - 1 for k, c in enumerate(example.completions)) - shared


def _by_prompt(example: Example) -> list[tuple[np.ndarray, list[int]]]:
    """(prompt, the completions that answer it), in order of first appearance."""
    if example.prompts is None:
        return [(example.prompt, list(range(len(example.completions))))]
    found: dict[bytes, tuple[np.ndarray, list[int]]] = {}
    for k, prompt in enumerate(example.prompts):
        found.setdefault(prompt.tobytes(), (prompt, []))[1].append(k)
    return list(found.values())


def attend(
    query: Tensor, key: Tensor, value: Tensor, packed: Packed, scaling: float | None, window: int | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """(1, heads, N, D) attention output; query (1, heads, N, D), key and value (1, kv heads, N, D).

    `window`: a token sees itself and the window - 1 tokens before it, None = all of them.
    """
    sizes = [s.length for s in packed.segments]
    queries, keys, values = (x.split(sizes, dim=2) for x in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    for i, segment in enumerate(packed.segments):
        k, v = keys[i], values[i]
        if segment.root != ALONE:
            k, v = torch.cat([keys[segment.root], k], dim=2), torch.cat([values[segment.root], v], dim=2)
        limit = window if window is not None and window < k.shape[2] else None
        plain = segment.root == ALONE and limit is None
        before = k.shape[2] - segment.length
        for start, end in [(0, segment.length)] if plain else _blocks(segment.length):
            seen = before + end  # keys: behind these a mask hides everything
            mask = None if plain else _mask(packed, end - start, seen, limit, value)
            outputs.append(functional.scaled_dot_product_attention(
                queries[i][:, :, start:end], k[:, :, :seen], v[:, :, :seen], attn_mask=mask, dropout_p=dropout,
                is_causal=plain, scale=scaling, enable_gqa=grouped))
    return torch.cat(outputs, dim=2)


def _blocks(length: int) -> list[tuple[int, int]]:
    """A long segment in blocks of rows: a masked product computes what its mask hides, so each leaves out the keys that
    none of its rows sees.
    """
    edges = [*range(0, max(1, length - _ROWS // 2), _ROWS), length]
    return list(itertools.pairwise(edges))


def _mask(packed: Packed, rows: int, columns: int, window: int | None, like: Tensor) -> Tensor:
    """(rows, columns) additive mask for the last `rows` of `columns` tokens.

    Whether a token is seen depends on the distance alone, so every mask is a piece of one band per window, made once
    per micro-batch for all layers.
    """
    band = packed.masks.get(window)
    most = max(s.length for s in packed.segments)
    before = max([0, *(packed.segments[s.root].length for s in packed.segments if s.root != ALONE)])
    if band is None or band.dtype != like.dtype:
        distance = (torch.arange(most)[:, None] + before) - torch.arange(before + most)[None]
        seen = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        band = torch.zeros(seen.shape).masked_fill(~seen, float("-inf")).to(like.device, like.dtype)
        packed.masks[window] = band
    first = before - (columns - rows)
    row, column = max(0, -first), max(0, first)
    return band[row:row + rows, column:column + columns]
