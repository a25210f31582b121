"""A scalar reward model from pairs: Bradley-Terry on the score of a sequence-classification head (lm/scores)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.lm import packed
from pipeline.lm.examples import Example, ids_of, subset
from pipeline.lm.packed import unique_tokens
from pipeline.lm.scores import group_scores
from pipeline.stage import derive_seed
from pipeline.training.gradients import BatchFacts, Metrics


@dataclass(frozen=True)
class RewardTask:
    """L = -log sigmoid(score(chosen) - score(rejected)), averaged over the rejected completions of a group."""

    pad: int
    normalise: str = "groups"
    whole: bool = False
    state: dict[str, Tensor] = field(default_factory=dict)  # none

    def prepare(self, model: Any, batch: list[Example], step: int) -> tuple[list[Example], Metrics]:
        return batch, {}

    def facts(self, batch: Sequence[Example]) -> BatchFacts:
        return BatchFacts.of(batch)

    def cost(self, example: Example) -> int:
        return unique_tokens(example)

    def losses(self, model: Any, examples: Sequence[Example], step: int,
               facts: BatchFacts) -> tuple[Tensor, Metrics, Sequence[Example]]:
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
    for micro in packed.micro_batches(examples, tokens_per_batch):
        scores, present = group_scores(model, [examples[i] for i in micro], pad)
        margins = (scores[:, :1] - scores[:, 1:])[present[:, 1:]]
        right, margin, number = right + (margins > 0).sum().item(), margin + margins.sum().item(), number + len(margins)
    return {"accuracy": right / number, "margin": margin / number}
