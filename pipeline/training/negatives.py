"""The negatives of a step: candidates scored by the live policy, some of them drawn, completion 0 kept beside them.

No gradient goes through a draw, and a group's draw is fixed by (seed, step, group id).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.build import Part
from pipeline.training import batching, forward
from pipeline.training.data import Example, columns
from pipeline.training.inputs import device_of, reference

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
    module, settings, device = how.part.module, how.part.settings, device_of(model)
    logps = candidate_logps(model, batch, how) if module.NEEDS_LOGPS else None
    width = max(len(e.completions) for e in batch)
    present = torch.tensor([[k < len(e.completions) for k in range(width)] for e in batch], device=device)
    refs = reference(batch, device) if all(e.ref_logps is not None for e in batch) else None
    uniforms = torch.from_numpy(batching.column_uniforms(batch, how.seed, step)).to(device)
    lengths = torch.tensor([[len(c) for c in e.completions] + [0] * (width - len(e.completions)) for e in batch],
                           device=device)
    indices, valid, metrics = module.draw(logps, refs, present, uniforms, settings, lengths)
    drawn = [columns(e, [0, *(k for k, ok in zip(ks, oks, strict=True) if ok)])
             for e, ks, oks in zip(batch, indices.tolist(), valid.tolist(), strict=True)]
    return drawn, metrics


def candidate_logps(model: Any, batch: Sequence[Example], how: Draw) -> Tensor:
    """(G, K) float32 log-probs of completions 1 .. K-1 under the current policy; column 0 is not scored and stays 0."""
    device = device_of(model)
    logps = torch.zeros(len(batch), max(len(e.completions) for e in batch), device=device)
    candidates = [columns(e, range(1, len(e.completions))) for e in batch]
    for micro in batching.micro_batches(candidates, how.tokens_per_batch):
        rows = forward.collate([candidates[i] for i in micro], device)
        scored = forward.group_logps(model, rows, how.logits_per_chunk)
        logps[micro, 1:1 + scored.shape[1]] = scored
    return logps
