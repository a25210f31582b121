"""SimPO (Meng et al. 2024, Eq. 6): averaged log-probs, a target margin, no reference.

    L = -log s( beta (avg(y_w) - avg(y_l)) - gamma ),   avg(y) = log pi(y) / |y|

Nothing anchors the policy: a large learning rate collapses it.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import averages, compared, log_sigmoid, pairs_of


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of SimPO. Papers' runs go from beta 2, ratio 0.1 to beta 10, ratio 0.5."""

    beta: float = setting(2.5, above=0.0)
    """Scale of the averaged log-probs, tokens/nat. 2.5 is the setting for Llama-3-Instruct."""

    gamma_beta_ratio: float = setting(0.55, low=0.0)
    """gamma / beta, the target margin in nats per token, as SimPO's code has it. TRL's simpo_gamma is gamma itself."""


def simpo_losses(chosen_logps: Tensor, rejected_logps: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor,
                 beta: float, gamma: float) -> Tensor:
    """SimPO loss of each pair.

    Args:
        chosen_logps, rejected_logps: (G,) log pi of the two completions, sums over tokens, nats.
        chosen_lengths, rejected_lengths: (G,) numbers of completion tokens.
        beta: > 0. gamma: >= 0, gamma_beta_ratio times beta.

    Returns: (G,), each > 0; log(1 + e^gamma) where the averages agree.
    """
    difference = averages(chosen_logps, chosen_lengths) - averages(rejected_logps, rejected_lengths)
    return -log_sigmoid(beta * difference - gamma)


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics of a comparison. Raises UserError for more than two completions."""
    pairs = pairs_of(batch, "simpo")
    gamma = settings.gamma_beta_ratio * settings.beta
    losses = simpo_losses(pairs.chosen, pairs.rejected, *pairs.lengths, settings.beta, gamma)
    chosen, rejected = averages(pairs.chosen, pairs.chosen_lengths), averages(pairs.rejected, pairs.rejected_lengths)
    return compared(pairs.usable, losses, settings.beta * chosen, settings.beta * rejected)


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True))
