"""The negatives of a step: candidates scored by the live policy, some of them drawn, completion 0 kept beside them.

No gradient goes through a draw, and a group's draw is fixed by (seed, step, group id).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.build import Part
from pipeline.training import batching, forward, replay
from pipeline.training.data import Example, columns
from pipeline.training.inputs import reference

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Draw:
    """How negatives are drawn."""

    part: Part
    seed: int
    tokens_per_batch: int
    logits_per_chunk: int


@torch.no_grad()
def draw(model: Any, batch: Sequence[Example], step: int, how: Draw) -> tuple[list[Example], Metrics]:
    """The groups with completion 0 and the drawn ones, and (G,) metrics of the draw."""
    logps = candidate_logps(model, batch, how) if how.part.module.NEEDS_LOGPS else None
    kept, metrics = _choose(batch, logps, step, how, next(model.parameters()).device)
    return _only(batch, kept), metrics


@torch.no_grad()
def draw_with_products(
    model: Any, examples: Sequence[Example], step: int, how: Draw
) -> tuple[list[Example], Metrics, AbstractContextManager[Any]]:
    """`draw` for one micro-batch, and what spares the forward pass on the drawn completions its matrix products where
    the model allows it: within that context the pass takes them from the scoring pass.
    """
    if not (how.part.module.NEEDS_LOGPS and replay.replayable(model)):
        return *draw(model, examples, step, how), contextlib.nullcontext()
    scored = replay.score(model, examples, how.logits_per_chunk)
    kept, metrics = _choose(examples, scored.logps, step, how, scored.logps.device)
    return _only(examples, kept), metrics, scored.replay(kept)


def candidate_logps(model: Any, batch: Sequence[Example], how: Draw) -> Tensor:
    """(G, K) float32 log-probs of completions 1 .. K-1 under the current policy; column 0 is not scored and stays 0."""
    device = next(model.parameters()).device
    logps = torch.zeros(len(batch), max(len(e.completions) for e in batch), device=device)
    candidates = [columns(e, range(1, len(e.completions))) for e in batch]
    for micro in batching.micro_batches(candidates, how.tokens_per_batch):
        rows = forward.collate([candidates[i] for i in micro], device)
        with replay.uncached(device):
            scored = forward.group_logps(model, rows, how.logits_per_chunk)
        logps[micro, 1:1 + scored.shape[1]] = scored
    return logps


def _choose(
    batch: Sequence[Example], logps: Tensor | None, step: int, how: Draw, device: torch.device
) -> tuple[list[list[int]], Metrics]:
    """Completions to keep of every group, 0 first, and (G,) metrics."""
    width = max(len(e.completions) for e in batch)
    present = torch.tensor([[k < len(e.completions) for k in range(width)] for e in batch], device=device)
    refs = reference(batch, device) if all(e.ref_logps is not None for e in batch) else None
    uniforms = torch.from_numpy(batching.column_uniforms(batch, how.seed, step)).to(device)
    lengths = torch.tensor([[len(c) for c in e.completions] + [0] * (width - len(e.completions)) for e in batch],
                           device=device)
    indices, valid, metrics = how.part.module.draw(logps, refs, present, uniforms, how.part.settings, lengths)
    kept = [[0, *(k for k, ok in zip(ks, oks, strict=True) if ok)]
            for ks, oks in zip(indices.tolist(), valid.tolist(), strict=True)]
    return kept, metrics


def _only(batch: Sequence[Example], kept: Sequence[Sequence[int]]) -> list[Example]:
    return [columns(e, ks) for e, ks in zip(batch, kept, strict=True)]
