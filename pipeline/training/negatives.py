"""The negatives of a step: candidates scored by the live policy, some of them drawn, completion 0 kept beside them.

No gradient goes through a draw, and a group's draw is fixed by (seed, step, group id).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config import Part
from pipeline.lm import forward, packed
from pipeline.lm.examples import Example, columns
from pipeline.lm.forward import Layout, device_of, lengths_of, padded
from pipeline.lm.packed import Packed, pack, pack_stem, unique_tokens
from pipeline.negatives import contract
from pipeline.training.inputs import generator

Metrics = dict[str, Tensor]
_LIGHT = 4  # tokens without gradient that take less memory than one with


@dataclass(frozen=True)
class NegativeDraw:
    """How negatives are drawn."""

    part: Part[contract.Draw]
    seed: int
    tokens_per_batch: int
    logits_per_chunk: int

    @property
    def scores(self) -> bool:
        """Whether the draw asks for the candidates' log-probs."""
        return self.part.plugin.needs_logps

    def cost(self, example: Example) -> int:
        """Unique tokens that a micro-batch of groups drawn from has to hold: those of the longest draw with gradient,
        or the candidates scored without, all of them in one pass. All, where completions have prompts of their own.
        """
        if example.prompts is not None:
            return unique_tokens(example)
        longest = sorted(_rest(example), key=lambda k: -len(example.completions[k]))
        learned = unique_tokens(columns(example, [0, *longest[:self.part.settings.m]]))
        if not self.scores:
            return learned
        return max(learned, -(-unique_tokens(columns(example, _rest(example))) // _LIGHT))


def draw(model: Any, batch: Sequence[Example], step: int, how: NegativeDraw) -> tuple[list[Example], Metrics]:
    """The groups with completion 0 and the drawn ones, and (G,) metrics of the draw."""
    return _drawn(batch, candidate_logps(model, batch, how) if how.scores else None, step, how, device_of(model))


def draw_and_run(model: Any, batch: Sequence[Example], step: int,
                 how: NegativeDraw) -> tuple[list[Example], Tensor, Metrics]:
    """`draw` from one micro-batch, and (G, 1 + M) float32 log-probs with gradient of what was drawn, 0 where absent.

    The preferred completions run first, with gradient; the candidates are scored on their prompts, and so are the drawn
    ones run: every prompt is computed once. The model is one that `can_grow`.
    """
    device = device_of(model)

    def logps(of: Sequence[Example], keep: Callable[[Example], Iterable[int]], layout: Layout) -> tuple[Tensor, Packed]:
        rows = forward.collate([columns(e, keep(e)) for e in of], device, layout=layout)
        return forward.group_logps(model, rows, how.logits_per_chunk), rows.packed

    preferred, stem = logps(batch, lambda e: [0], pack_stem)
    on_stem = partial(pack, stem=stem)
    with torch.no_grad():
        scored, _ = logps(batch, _rest, on_stem)
    drawn, metrics = _drawn(batch, functional.pad(scored, (1, 0)), step, how, device)
    negative, _ = logps(drawn, _rest, on_stem)
    return drawn, torch.cat([preferred, negative], dim=1), metrics


def can_grow(model: Any, how: NegativeDraw) -> bool:
    """Whether `draw_and_run` does for groups with one prompt what `draw` and a pass over the drawn do: candidates are
    scored, in the layout that shares prompts.
    """
    return how.scores and forward.is_shared(model)


def _rest(example: Example) -> range:
    return range(1, len(example.completions))


@torch.no_grad()
def _drawn(batch: Sequence[Example], logps: Tensor | None, step: int, how: NegativeDraw,
           device: torch.device) -> tuple[list[Example], Metrics]:
    lengths = lengths_of(batch, device)
    refs = padded([e.ref_logps for e in batch], device) if all(e.ref_logps is not None for e in batch) else None
    uniforms = torch.from_numpy(column_uniforms(batch, how.seed, step)).to(device)
    indices, valid, metrics = how.part.plugin.draw(logps, refs, lengths > 0, uniforms, how.part.settings, lengths)
    drawn = [columns(e, [0, *(k for k, ok in zip(ks, oks, strict=True) if ok)])
             for e, ks, oks in zip(batch, indices.tolist(), valid.tolist(), strict=True)]
    return drawn, metrics


def column_uniforms(examples: Sequence[Example], seed: int, step: int) -> np.ndarray:
    """(G, K) float32 in [0, 1), K the largest number of completions; a group's numbers do not depend on K."""
    width = max(len(e.completions) for e in examples)
    return np.stack([generator(seed, "columns", step, e.id).random(width, np.float32) for e in examples])


@torch.no_grad()
def candidate_logps(model: Any, batch: Sequence[Example], how: NegativeDraw) -> Tensor:
    """(G, K) float32 log-probs of completions 1 .. K-1 under the current policy; column 0 is not scored and stays 0."""
    device = device_of(model)
    logps = torch.zeros(len(batch), max(len(e.completions) for e in batch), device=device)
    candidates = [columns(e, _rest(e)) for e in batch]
    for micro in packed.micro_batches(candidates, _LIGHT * how.tokens_per_batch):
        rows = forward.collate([candidates[i] for i in micro], device)
        scored = forward.group_logps(model, rows, how.logits_per_chunk)
        logps[micro, 1:1 + scored.shape[1]] = scored
    return logps
