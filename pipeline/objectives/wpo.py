"""Weighted preference optimization (Zhou et al. 2024, Eq. 2): DPO weighted by how much like the policy's own a pair is.

    w(y) = exp( mean_t [ log pi(y_t) - log sum_v pi(v)^2 ] )
    L    = w(y_w) w(y_l) (-log s(beta h)),    no gradient through the weights

A token of the policy's own sampling has weight about 1, an unlikely one less.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.dpo import dpo_losses
from pipeline.objectives.shared.pairs import at_least_float32, averages, compared, required, rewards_of, with_anchor
from pipeline.objectives.shared.tokenwise import completion_sums, tokens_of


@dataclass(frozen=True)
class Settings:
    """Hyper-parameter of WPO."""

    beta: float = setting(0.1, above=0.0)
    """Strength of the pull to the reference, 1/nats, as in DPO."""


def wpo_weights(log_likeness: Tensor, lengths: Tensor) -> Tensor:
    """w(y) of every completion.

    Args:
        log_likeness: any shape, sums over the completion's tokens of log pi(y_t) - log sum_v pi(v)^2, nats.
        lengths: same shape, numbers of tokens, 0 where absent.

    Returns: the same shape, each > 0, without gradient; 1 where absent.
    """
    return averages(log_likeness.detach(), lengths).exp()


def wpo_losses(chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
               chosen_weights: Tensor, rejected_weights: Tensor, beta: float) -> Tensor:
    """WPO loss of each pair.

    Args:
        chosen_logps, rejected_logps: (G,) log pi of the two completions, sums over tokens, nats.
        ref_chosen_logps, ref_rejected_logps: (G,) the same under the frozen reference.
        chosen_weights, rejected_weights: (G,) w of the two, > 0; no gradient goes into them.
        beta: > 0.

    Returns: (G,), each > 0.
    """
    plain = dpo_losses(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)
    return (at_least_float32(chosen_weights) * at_least_float32(rejected_weights)).detach() * plain


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,), the metrics of a comparison and weight, the product of the two.

    Raises UserError for more than two completions, ValueError without token inputs.
    """
    pairs, four = with_anchor(batch, "wpo")
    tokens = tokens_of(batch, "wpo")
    squares = at_least_float32(required(tokens.log_sum_squares, "tokens.log_sum_squares", "wpo").detach())
    likeness = at_least_float32(tokens.logps.detach()) - squares
    weights = pairs.sides(wpo_weights(completion_sums(likeness, tokens, batch.lengths), batch.lengths))
    losses = wpo_losses(*four, *weights, settings.beta)
    return compared(pairs.usable, losses, *rewards_of(four, settings.beta), weight=weights[0] * weights[1])


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True, reference=True, sum_squares=True))
