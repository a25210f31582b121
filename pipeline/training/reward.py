"""A scalar reward model from pairs: Bradley-Terry on the score of a sequence-classification head (lm/scores)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.lm import forward, packed
from pipeline.lm.examples import Example, ids_of, subset
from pipeline.lm.packed import unique_tokens
from pipeline.lm.scores import group_scores
from pipeline.stage import derive_seed
from pipeline.statistics import outcome, wilson
from pipeline.training.gradients import BatchFacts, Metrics


@dataclass(frozen=True)
class RewardTask:
    """L = -log sigmoid(score(chosen) - score(rejected)), averaged over the rejected completions of a group.

    label_smoothing = e: (1 - e) of that and e of the loss of the pair turned round. centring = c: and c times
    (score(chosen) + score(rejected))^2, which keeps scores around 0 (Eisenstein et al. 2023: 0.01). margin = m: the
    difference of the two scores has to exceed m times that of what the data say of them, Example.scores (Touvron et al.
    2023, Llama 2, Eq. 2); 0 for a group that carries none.
    """

    pad: int
    label_smoothing: float = 0.0
    centring: float = 0.0
    margin: float = 0.0
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
        above = margins - self.margin * _wanted(examples, margins) if self.margin > 0.0 else margins
        each = functional.softplus(-above)
        if self.label_smoothing > 0.0:
            each = (1.0 - self.label_smoothing) * each + self.label_smoothing * functional.softplus(above)
        if self.centring > 0.0:
            each = each + self.centring * (scores[:, :1] + scores[:, 1:]).square()
        losses = (each * others).sum(1) / number
        with torch.no_grad():
            right = ((margins > 0) & others).sum(1) / number
            metrics = {"accuracy": right, "margin": (margins * others).sum(1) / number,
                       "chosen_reward": scores[:, 0].detach(),
                       "rejected_reward": (scores[:, 1:].detach() * others).sum(1) / number}
        return losses, metrics, examples


def _wanted(examples: Sequence[Example], like: Tensor) -> Tensor:
    """(G, K - 1) by how much completion 0 is better than each other one by what the data say; 0 where they do not."""
    wanted = torch.zeros_like(like)
    for g, example in enumerate(examples):
        if example.scores is not None:
            first, *others = example.scores
            wanted[g, :len(others)] = torch.tensor([first - other for other in others])
    return wanted


def split(examples: Sequence[Example], fraction: float) -> tuple[Sequence[Example], Sequence[Example]]:
    """(training, held out): by the hash of the id, so the same pair is on the same side in every run."""
    limit = int(fraction * 1_000_000)
    held = [derive_seed(0, "held out", name) % 1_000_000 < limit for name in ids_of(examples)]
    return (subset(examples, [i for i, h in enumerate(held) if not h]),
            subset(examples, [i for i, h in enumerate(held) if h]))


@torch.no_grad()
def accuracy(model: Any, examples: Sequence[Example], pad: int, tokens_per_batch: int) -> dict[str, float]:
    """What held-out comparisons say of the scores: see `measured`."""
    margins, longer = list[float](), list[int]()
    for micro in packed.micro_batches(examples, tokens_per_batch, padded=not forward.is_shared(model)):
        some = [examples[i] for i in micro]
        scores, present = group_scores(model, some, pad)
        margins += (scores[:, :1] - scores[:, 1:])[present[:, 1:]].tolist()
        longer += [len(e.completions[0]) - len(other) for e in some for other in e.completions[1:]]
    return measured(margins, longer, len(examples))


def measured(margins: Sequence[float], longer: Sequence[int], groups: int) -> dict[str, float]:
    """Numbers of comparisons with these margins, score(preferred) - score(other).

    accuracy             share with a margin above 0, a tie a half; _low, _high: Wilson interval (95 %) over `groups`
    margin               its mean
    ece                  expected calibration error (Guo et al. 2017): in 10 bins of confidence sigmoid(|margin|), the
                         mean distance between confidence and accuracy
    length_accuracy      share right of "the longer one is better", a tie a half: what no model at all is right about
    controlled_accuracy  mean of the accuracies where the preferred one is longer and where it is shorter: length alone
                         gives 1/2. Not there where one of the two never occurs

    longer: tokens of the preferred one less those of the other.
    """
    right = [outcome(margin, 0.0) for margin in margins]
    share = fmean(right)
    low, high = wilson(share, groups)
    sides = [[one for one, more in zip(right, longer, strict=True) if sign * more > 0] for sign in (1, -1)]
    controlled = {"controlled_accuracy": fmean(map(fmean, sides))} if all(sides) else {}
    return {"accuracy": share, "accuracy_low": low, "accuracy_high": high, "margin": fmean(margins),
            "ece": calibration_error(margins), "length_accuracy": fmean(outcome(more, 0) for more in longer),
            **controlled}


def calibration_error(margins: Sequence[float], bins: int = 10) -> float:
    """sum over bins of |number of right ones - sum of confidences| / all; confidence lies in [1/2, 1]."""
    gaps = [0.0] * bins
    for margin in margins:
        sure = 1.0 / (1.0 + math.exp(-abs(margin)))
        gaps[min(bins - 1, int((sure - 0.5) * 2 * bins))] += float(margin > 0) - sure
    return sum(map(abs, gaps)) / len(margins)
