"""DiscoPOP (Lu et al. 2024, Eq. 5): a loss found by a language model.

    z = beta h,   g = s(z / tau)
    L = (1 - g) (-log s(z)) + g exp(-z)

Exponential for pairs ranked well (z >> 0), logistic for the others. The gradient flows through g. Not convex.
Sums over tokens.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import compared, log_ratios, log_sigmoid, rewards_of, with_anchor


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of DiscoPOP."""

    beta: float = setting(0.05, above=0.0)
    """Strength of the pull to the reference, 1/nats. Paper: 0.05."""

    tau: float = setting(0.05, above=0.0, high=1.0)
    """Temperature of the mixing. Paper: 0.05. Above 1 the exponential part would grow without bound for z < 0."""


def discopop_losses(chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
                    beta: float, tau: float) -> Tensor:
    """DiscoPOP loss of each pair.

    Args:
        chosen_logps, rejected_logps: (G,) log pi of the two completions, sums over tokens, nats.
        ref_chosen_logps, ref_rejected_logps: (G,) the same under the frozen reference.
        beta: > 0. tau: in (0, 1].

    Returns: (G,), each > 0; (1 + ln 2) / 2 where policy and reference agree.
    """
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    logits = beta * (chosen - rejected)
    logistic = (-logits / tau).sigmoid() * -log_sigmoid(logits)
    # g exp(-z) as one exponential: its factors are 0 and inf for z below -88.
    return logistic + (log_sigmoid(logits / tau) - logits).exp()


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics of a comparison. Raises UserError for more than two completions."""
    pairs, four = with_anchor(batch, "discopop")
    return compared(pairs.usable, discopop_losses(*four, settings.beta, settings.tau), *rewards_of(four, settings.beta))


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True, reference=True))
