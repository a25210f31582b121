"""A scalar reward model from pairs: Bradley-Terry on the score of a sequence-classification head.

Whoever loads the folder gets the score by the model's own forward pass, which reads it where the last token stands that
is not the pad token. The packed layout, where `prepare` allows it, gives the same scores with every prompt run once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.lm import batches, forward, prefix
from pipeline.lm.examples import Example, ids_of, subset
from pipeline.lm.forward import device_of
from pipeline.lm.packed import Packed, pack, unique_tokens
from pipeline.stage import derive_seed
from pipeline.training.inputs import About

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class RewardTask:
    """L = -log sigmoid(score(chosen) - score(rejected)), averaged over the rejected completions of a group."""

    pad: int
    normalise: str = "groups"
    whole: bool = False
    state: dict[str, Tensor] = field(default_factory=dict)  # none

    def prepare(self, model: Any, batch: list[Example], step: int) -> tuple[list[Example], Metrics]:
        return batch, {}

    def about(self, batch: Sequence[Example]) -> About:
        return About.of(batch)

    def cost(self, example: Example) -> int:
        return unique_tokens(example)

    def losses(
        self, model: Any, examples: Sequence[Example], step: int, about: About
    ) -> tuple[Tensor, Metrics, Sequence[Example]]:
        """(G,) losses with gradient, (G,) metrics without, and the groups."""
        scores, present = group_scores(model, examples, self.pad)
        margins = scores[:, :1] - scores[:, 1:]  # (G, K - 1)
        others = present[:, 1:]
        number = others.sum(1)
        losses = (functional.softplus(-margins) * others).sum(1) / number
        with torch.no_grad():
            right = ((margins > 0) & others).sum(1) / number
            metrics = {"accuracy": right, "margin": (margins * others).sum(1) / number,
                       "chosen_reward": scores[:, 0].detach(),
                       "rejected_reward": (scores[:, 1:].detach() * others).sum(1) / number}
        return losses, metrics, examples


def group_scores(model: Any, examples: Sequence[Example], pad: int) -> tuple[Tensor, Tensor]:
    """(G, K) float32 scores and (G, K) bool present."""
    rows = forward.collate(examples, device_of(model), pad)
    flat = _packed_scores(model, examples, pad) if prefix.is_shared(model) else _row_scores(model, rows)  # (R,)
    present = rows.present
    return torch.zeros_like(present, dtype=torch.float32).masked_scatter(present, flat), present


def _row_scores(model: Any, rows: forward.Rows) -> Tensor:
    return model(input_ids=rows.input_ids, use_cache=False).logits[:, 0].float()  # type: ignore[no-any-return]


def _packed_scores(model: Any, examples: Sequence[Example], pad: int) -> Tensor:
    # the layout leaves out the last token of every completion, which predicts nothing but is scored: give it one more
    longer = [replace(e, completions=tuple(np.append(c, pad) for c in e.completions)) for e in examples]
    packed = pack(longer, device_of(model))
    ends = torch.from_numpy(_ends(examples, packed, pad)).to(packed.input_ids.device)
    states = prefix.hidden_states(model, packed).index_select(0, ends)
    return model.score(states)[:, 0].float()  # type: ignore[no-any-return]


def _ends(examples: Sequence[Example], packed: Packed, pad: int) -> np.ndarray:
    """(R,) where the last token of every completion stands that is not the pad token; the first where all are."""
    rows = [np.concatenate([e.prompt_of(k), c]) for e in examples for k, c in enumerate(e.completions)]
    lasts = (max(np.flatnonzero(ids != pad), default=0) for ids in rows)
    return np.array([places[last] for places, last in zip(packed.sequences, lasts, strict=True)], np.int64)


def prepare(model: Any, pad: int, share_prefix: bool = True) -> None:
    """Choose the model's layout, once, before the first step; the log says which. A model whose score is more than a
    layer on a hidden state stays with rows.
    """
    if not share_prefix:
        return
    before = model.config._attn_implementation
    why = prefix.shared(model) or _differs(model, pad)
    if why is not None:
        model.set_attn_implementation(before)
    forward.say_layout(model, before, why)


@torch.no_grad()
def _differs(model: Any, pad: int) -> str | None:
    """Why packed scores are not the model's own, None where they are."""
    other = (pad + 1) % model.get_input_embeddings().weight.shape[0]
    ids = np.array([other, other, pad, other, pad, other], np.int32)
    probe = [Example("tree", ids, (ids[:4], ids[:3], ids[:1])), Example("single", ids[:2], (ids,))]
    if not hasattr(model, "score"):
        return "it has no layer `score` on its hidden states"
    own, packed = _row_scores(model, forward.collate(probe, device_of(model), pad)), _packed_scores(model, probe, pad)
    if torch.allclose(own, packed, atol=1e-3, rtol=1e-3):
        return None
    return f"its packed scores differ from its own by {(own - packed).abs().max():.2g}"


def split(examples: Sequence[Example], fraction: float) -> tuple[Sequence[Example], Sequence[Example]]:
    """(training, held out): by the hash of the id, so the same pair is on the same side in every run."""
    limit = int(fraction * 1_000_000)
    held = [derive_seed(0, "held out", name) % 1_000_000 < limit for name in ids_of(examples)]
    return (subset(examples, [i for i, h in enumerate(held) if not h]),
            subset(examples, [i for i, h in enumerate(held) if h]))


@torch.no_grad()
def accuracy(model: Any, examples: Sequence[Example], pad: int, tokens_per_batch: int) -> dict[str, float]:
    """Share of comparisons where the preferred completion scores higher, and the mean margin."""
    right, margin, number = 0.0, 0.0, 0
    for micro in batches.micro_batches(examples, tokens_per_batch):
        scores, present = group_scores(model, [examples[i] for i in micro], pad)
        margins = (scores[:, :1] - scores[:, 1:])[present[:, 1:]]
        right, margin, number = right + (margins > 0).sum().item(), margin + margins.sum().item(), number + len(margins)
    return {"accuracy": right / number, "margin": margin / number}
