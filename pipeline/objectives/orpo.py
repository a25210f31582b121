"""ORPO (Hong et al. 2024, Eqs. 6-7): the likelihood of the chosen answer and the odds ratio of the two.

    p(y) = exp(log pi(y) / |y|),   odds(y) = p / (1 - p)
    L    = NLL(y_w) - lambda log s( log odds(y_w) - log odds(y_l) )

Averages over completion tokens, no reference. TRL's NLL also covers the prompt, this one does not.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.auxiliary import SFT, sft_losses
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.odds import log_odds
from pipeline.objectives.shared.pairs import averages, compared, log_sigmoid, pairs_of


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of ORPO."""

    odds_weight: float = setting(0.1, low=0.0)
    """lambda. Paper: 0.1. TRL calls it beta."""

    sft_normalise: str = setting("mean", choices=SFT)
    """NLL per token of the completion (mean, the paper's), averaging to the batch's token mean (batch, TRL), or sum."""


def orpo_losses(chosen_logps: Tensor, rejected_logps: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor,
                odds_weight: float, sft_normalise: str = "mean", mean_chosen_length: float | None = None) -> Tensor:
    """ORPO loss of each pair.

    Args:
        chosen_logps, rejected_logps: (G,) log pi of the two completions, sums over tokens, nats.
        chosen_lengths, rejected_lengths: (G,) numbers of completion tokens.
        odds_weight: lambda, >= 0. sft_normalise: "mean", "batch" or "sum".
        mean_chosen_length: for "batch", the mean of chosen_lengths over the global batch; None: over these pairs.

    Returns: (G,), each > 0.
    """
    odds = log_odds(averages(chosen_logps, chosen_lengths)) - log_odds(averages(rejected_logps, rejected_lengths))
    nll = sft_losses(chosen_logps, chosen_lengths, sft_normalise, mean_chosen_length)
    return nll - odds_weight * log_sigmoid(odds)


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics of a comparison; the rewards are lambda times the averaged log-probs.

    Raises UserError for more than two completions.
    """
    pairs = pairs_of(batch, "orpo")
    losses = orpo_losses(pairs.chosen, pairs.rejected, *pairs.lengths, settings.odds_weight, settings.sft_normalise,
                         batch.mean_chosen_length)
    chosen, rejected = averages(pairs.chosen, pairs.chosen_lengths), averages(pairs.rejected, pairs.rejected_lengths)
    return compared(pairs.usable, losses, settings.odds_weight * chosen, settings.odds_weight * rejected)


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True))
