"""Contrastive preference learning (Hejna et al. 2023): DPO's comparison without a reference, discounted over tokens.

    z(y) = alpha sum_t gamma^t log pi(y_t),   t = 0, 1, ...
    L    = -log( e^{z_w} / (e^{z_w} + e^{lambda z_l}) ) = softplus(lambda z_l - z_w)

lambda < 1 is the conservative bias: z is negative, so a rejected answer that is unlikely already costs less. With
lambda = gamma = 1 it is CPO without its likelihood term.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import at_least_float32, compared, pairs_of, softplus
from pipeline.objectives.shared.tokenwise import completion_sums, tokens_of


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of CPL. alpha and lambda: the authors' configurations (cpl.yaml of their repository)."""

    alpha: float = setting(0.1, above=0.0)
    """Temperature, 1/nats."""

    bias: float = setting(0.5, above=0.0, high=1.0)
    """lambda, the weight of the rejected answer's sum; contrastive_bias in the authors' code."""

    gamma: float = setting(1.0, above=0.0, high=1.0)
    """Discount per token. 1: none, a choice."""


def cpl_losses(chosen_sums: Tensor, rejected_sums: Tensor, alpha: float, bias: float) -> Tensor:
    """CPL loss of each pair.

    Args:
        chosen_sums, rejected_sums: (G,) sum_t gamma^t log pi(y_t), nats. alpha: > 0, 1/nats. bias: lambda, in (0, 1].

    Returns: (G,), each > 0.
    """
    return softplus(alpha * (bias * at_least_float32(rejected_sums) - at_least_float32(chosen_sums)))


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics of a comparison (rewards are z). Raises UserError for more than two completions,
    ValueError without the token inputs.
    """
    pairs, tokens = pairs_of(batch, "cpl"), tokens_of(batch, "cpl")
    logps = at_least_float32(tokens.logps)
    discounted = logps * settings.gamma ** tokens.position.to(logps.dtype)
    chosen, rejected = pairs.sides(completion_sums(discounted, tokens, batch.present))
    losses = cpl_losses(chosen, rejected, settings.alpha, settings.bias)
    return compared(pairs.usable, losses, settings.alpha * chosen, settings.alpha * rejected)


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True, token_logps=True))
