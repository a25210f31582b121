"""Weighted preference optimization (Zhou et al. 2024, Eq. 2): DPO weighted by how much like the policy's own a pair is.

    w(y) = exp( mean_t [ log pi(y_t) - log sum_v pi(v)^2 ] )
    L    = w(y_w) w(y_l) (-log s(beta h)),    no gradient through the weights

A token of the policy's own sampling has weight about 1, an unlikely one less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.build import setting
from pipeline.objectives.dpo import dpo_losses
from pipeline.objectives.pairs import averages, compared, log_ratios, with_anchor
from pipeline.objectives.tensors import at_least_float32, column, required, tokens_of
from pipeline.records import LossInputs

if TYPE_CHECKING:
    from torch import Tensor

NEEDS = frozenset({"reference", "pairs", "tokens"})
NORMALISE = "groups"


@dataclass(frozen=True)
class Settings:
    """Hyper-parameter of WPO."""

    beta: float = setting(0.1, above=0.0)
    """Strength of the pull to the reference, 1/nats, as in DPO."""


def log_sum_squares(logits: Tensor) -> Tensor:
    """log sum_v pi(v)^2 of each row. logits: (N, V), any float type. Returns (N,) in [-log V, 0], without gradient."""
    logits = at_least_float32(logits.detach())
    return (2.0 * logits).logsumexp(dim=1) - 2.0 * logits.logsumexp(dim=1)


def wpo_weights(
    token_logps: Tensor, token_log_sum_squares: Tensor, group: Tensor, side: Tensor, lengths: Tensor
) -> Tensor:
    """w(y) of every completion.

    Args:
        token_logps, token_log_sum_squares: (N,) of all completion tokens, nats.
        group, side: (N,) int64: the token's group and its completion in it.
        lengths: (G, K) int64 numbers of tokens, 0 where absent.

    Returns: (G, K), each > 0, without gradient; 1 where absent.
    """
    each = at_least_float32(token_logps.detach()) - token_log_sum_squares.detach()
    sums = each.new_zeros(lengths.numel()).index_add(0, group * lengths.shape[1] + side, each)
    return averages(sums.view(lengths.shape), lengths).exp()


def loss(batch: LossInputs, settings: Settings) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses (G,), the metrics of a comparison and weight, the product of the two.

    Raises UserError for more than two completions, ValueError without token inputs.
    """
    pairs, four = with_anchor(batch, "wpo")
    tokens = tokens_of(batch, "wpo")
    squares = log_sum_squares(required(tokens.logits, "tokens.logits", "wpo"))
    each = wpo_weights(tokens.logps, squares, tokens.group, tokens.column, batch.lengths)
    weights = column(each, 0, pairs.usable) * column(each, 1, pairs.usable)
    losses = weights * dpo_losses(*four, settings.beta)
    chosen, rejected = log_ratios(*four)
    return compared(pairs, losses, settings.beta * chosen, settings.beta * rejected, weight=weights)
