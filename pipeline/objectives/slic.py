"""SLiC (Zhao et al. 2023; the rank loss as in RSO, Liu et al. 2023, Eq. 9): a hinge on log-probs.

    L = max(0, 1 - gamma (log pi(y_w) - log pi(y_l))) + w (-log pi(y_w))

The margin is delta = 1 / gamma nats. The full SLiC-HF has the likelihood term, RSO drops it. Subgradient 0 at the kink.
Sums over tokens, no reference.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.auxiliary import SFT, sft_losses
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import at_least_float32, compared, pairs_of


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of SLiC."""

    gamma: float = setting(0.05, above=0.0)
    """Slope, 1/nats; the margin is 1 / gamma. RSO: 0.05. TRL calls it beta."""

    sft_weight: float = setting(0.0, low=0.0)
    """w, SLiC's lambda: weight of the likelihood of the chosen answer. RSO: 0."""

    sft_normalise: str = setting("sum", choices=SFT)
    """The likelihood summed over tokens (sum), per token of the completion, or averaging to the batch's token mean."""


def slic_losses(chosen_logps: Tensor, rejected_logps: Tensor, gamma: float) -> Tensor:
    """SLiC's rank loss of each pair.

    Args:
        chosen_logps, rejected_logps: (G,) log pi of the two completions, sums over tokens, nats.
        gamma: > 0.

    Returns: (G,), each >= 0; 1 where both are equally likely.
    """
    return (1.0 - gamma * (at_least_float32(chosen_logps) - at_least_float32(rejected_logps))).relu()


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics of a comparison. Raises UserError for more than two completions."""
    pairs = pairs_of(batch, "slic")
    losses = slic_losses(pairs.chosen, pairs.rejected, settings.gamma)
    if settings.sft_weight > 0.0:
        nll = sft_losses(pairs.chosen, pairs.chosen_lengths, settings.sft_normalise, batch.mean_chosen_length)
        losses = losses + settings.sft_weight * nll
    return compared(pairs.usable, losses, settings.gamma * pairs.chosen, settings.gamma * pairs.rejected)


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True))
