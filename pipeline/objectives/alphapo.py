"""AlphaPO (Gupta et al. 2025): SimPO with a bent reward.

    r(y) = (1 - exp(-alpha avg(y))) / alpha,   avg(y) = log pi(y) / |y|;   alpha = 0: r = avg
    L    = -log s( beta (r(y_w) - r(y_l)) - gamma )

For alpha > 0 the reward of unlikely completions falls exponentially; its exponent is clamped, and a clamped completion
gives no gradient. alpha = 0 is SimPO. No reference.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import averages, compared, log_sigmoid, pairs_of

CLAMP = 80.0  # largest exponent: e^88 overflows in float32


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of AlphaPO."""

    beta: float = setting(2.5, above=0.0)
    """Scale of the reward, as in SimPO."""

    gamma_beta_ratio: float = setting(0.55, low=0.0)
    """gamma / beta, the target margin, as in SimPO. TRL's simpo_gamma is gamma itself."""

    alpha: float = setting(0.25, low=-10.0, high=10.0)
    """How the reward bends. Paper: 0.25. 0: not at all."""


def alpha_rewards(logps: Tensor, lengths: Tensor, alpha: float) -> Tensor:
    """(1 - exp(-alpha avg)) / alpha, elementwise; the exponent is clamped at 80.

    Args: logps: any shape, sums over tokens, nats. lengths: same shape, numbers of tokens. alpha: any number.
    """
    average = averages(logps, lengths)
    return average if alpha == 0.0 else -(-alpha * average).clamp(max=CLAMP).expm1() / alpha


def alphapo_losses(chosen_logps: Tensor, rejected_logps: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor,
                   beta: float, gamma: float, alpha: float) -> Tensor:
    """AlphaPO loss of each pair.

    Args:
        chosen_logps, rejected_logps: (G,) log pi of the two completions, sums over tokens, nats.
        chosen_lengths, rejected_lengths: (G,) numbers of completion tokens.
        beta: > 0. gamma: >= 0, gamma_beta_ratio times beta. alpha: any number.

    Returns: (G,), each >= 0; log(1 + e^gamma) where the averages agree.
    """
    chosen = alpha_rewards(chosen_logps, chosen_lengths, alpha)
    rejected = alpha_rewards(rejected_logps, rejected_lengths, alpha)
    return -log_sigmoid(beta * (chosen - rejected) - gamma)


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,), the metrics of a comparison and clamped, the pair's number of clamped sides.

    Raises UserError for more than two completions.
    """
    pairs = pairs_of(batch, "alphapo")
    gamma = settings.gamma_beta_ratio * settings.beta
    sides = (pairs.chosen, pairs.chosen_lengths), (pairs.rejected, pairs.rejected_lengths)
    losses = alphapo_losses(pairs.chosen, pairs.rejected, *pairs.lengths, settings.beta, gamma, settings.alpha)
    rewards = (settings.beta * alpha_rewards(*side, settings.alpha) for side in sides)
    over = [(-settings.alpha * averages(*side) > CLAMP).long() for side in sides]
    return compared(pairs.usable, losses, *rewards, clamped=over[0] + over[1])


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True))
