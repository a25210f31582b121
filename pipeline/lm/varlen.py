"""Attention of the packed layout in one kernel a layer, for CUDA: each segment's keys stand behind those of its root.

`torch.nn.attention.varlen.varlen_attn` takes segments of any length in one call, keys longer than queries (a causal
mask is then aligned at the end), fewer heads of keys than of queries, and a sliding window. So the tree needs no mask:
one gather makes [root | own] keys and values for every segment. It computes in half precision only.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

_LARGEST_HEAD = 256  # of what FlashAttention 2 takes, in steps of 8


@dataclass(frozen=True)
class Spans:
    """Which keys the queries of each of S segments see."""

    keys: Tensor  # (K,) int64: places among the keys there are, segment by segment
    queries_from: Tensor  # (S + 1,) int32: where a segment's queries begin
    keys_from: Tensor  # (S + 1,) int32: where its keys begin in `keys`
    most_queries: int
    most_keys: int


def spans_of(lengths: Sequence[int], roots: Sequence[int], before: Sequence[int], device: torch.device) -> Spans:
    """Spans of segments of these `lengths`, whose keys stand behind those of `before` (lengths of a stem's segments).

    roots: for each segment the one it sees whole, by its place in [before | lengths]; negative for none.
    """
    starts = list(itertools.accumulate([*before, *lengths], initial=0))
    keys, sizes = [], []
    for i, (length, root) in enumerate(zip(lengths, roots, strict=True)):
        own = starts[len(before) + i]
        seen = [] if root < 0 else [torch.arange(starts[root], starts[root + 1])]
        keys += [*seen, torch.arange(own, own + length)]
        sizes.append(length + sum(map(len, seen)))
    joined = torch.cat(keys)
    edges = torch.tensor([*itertools.accumulate(lengths, initial=0), *itertools.accumulate(sizes, initial=0)],
                         dtype=torch.int32).to(device)
    half = len(lengths) + 1
    return Spans(joined.to(device), edges[:half], edges[half:], max(lengths), max(sizes))


def serves(query: Tensor, dropout: float) -> bool:
    """Whether the kernel takes such queries on CUDA: in half precision, on a device from Ampere on."""
    size = query.shape[-1]
    return (query.dtype in (torch.bfloat16, torch.float16) and dropout == 0.0
            and size % 8 == 0 and size <= _LARGEST_HEAD and _ampere(query.device))


@functools.cache
def _ampere(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def attend(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scaling: float | None, window: int | None,
           kernel: Callable[..., Any] = varlen_attn) -> Tensor:
    """(1, heads, N, D) attention output; query (1, heads, N, D), key and value (1, kv heads, stem's + N, D).

    `window`: a token sees itself and the window - 1 tokens before it, None = all of them. `kernel`: as varlen_attn.
    """
    keys, values = (x[0].transpose(0, 1).index_select(0, spans.keys) for x in (key, value))
    out: Tensor = kernel(query[0].transpose(0, 1), keys, values, spans.queries_from, spans.keys_from,
                         spans.most_queries, spans.most_keys, scale=scaling, enable_gqa=query.shape[1] != key.shape[1],
                         window_size=(-1 if window is None else window - 1, 0))
    return out.transpose(0, 1)[None]
