"""AFT, the alignment loss of Alignment Fine-Tuning (Wang et al. 2023): every good answer above every bad one.

    L = log( 1 + sum_{w good} sum_{l bad} exp(s_l - s_w) ),   s = log pi(y|x)

No reference. Which answers are good: completion 0 alone, or all whose score reaches `threshold`.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.lists import compared_list
from pipeline.objectives.shared.pairs import at_least_float32, averages, masked, softplus
from pipeline.objectives.shared.scores import scores_of


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of AFT."""

    logps: str = setting("sum", choices=("sum", "avg"))
    """s: log-probs summed over tokens (as the DPOP paper quotes the loss) or averaged (the AFT paper's own scores)."""

    threshold: float | None = None
    """Answers that score at least this are good, the others bad. null: completion 0 is good, no scores needed."""


def needs(settings: Settings) -> Needs:
    """Lists; scores only where a threshold tells good from bad."""
    return Needs(lists=True, scores=settings.threshold is not None)


def aft_losses(values: Tensor, good: Tensor, bad: Tensor) -> Tensor:
    """AFT loss of each group.

    Args:
        values: (G, K) log pi of the completions, nats (or nats per token).
        good, bad: (G, K) bool, disjoint; entries in neither are ignored.

    Returns: (G,), >= 0: log(1 + n_good n_bad) where all values agree; 0 for a group without a good or a bad one.
    """
    usable = good.any(dim=1) & bad.any(dim=1)
    kept = masked(values, good | bad)
    # The double sum is a product: log sum_l e^{s_l} + log sum_w e^{-s_w}. Unusable rows keep zeros, for their gradient.
    lowest = (-kept).masked_fill(~good & usable[:, None], float("-inf"))
    highest = kept.masked_fill(~bad & usable[:, None], float("-inf"))
    violation = highest.logsumexp(dim=1) + lowest.logsumexp(dim=1)
    return masked(softplus(violation), usable)


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,), the metrics of a list (rewards are s) and good (how many). Raises ValueError without its scores."""
    good = batch.present.new_zeros(batch.present.shape)
    good[:, 0] = batch.present[:, 0]
    if settings.threshold is not None:
        scores = at_least_float32(scores_of(batch, "aft"))
        good = batch.present & (scores >= settings.threshold)
    bad = batch.present & ~good
    values = masked(batch.logps, batch.present)
    if settings.logps == "avg":
        values = averages(values, batch.lengths)
    usable = good.any(dim=1) & bad.any(dim=1)
    losses = aft_losses(values, good, bad)
    return compared_list(usable, batch.present, losses, values, good=good.sum(dim=1))


OBJECTIVE = Objective(Settings, loss, needs=needs)
