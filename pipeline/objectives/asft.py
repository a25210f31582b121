"""ASFT, aligned supervised fine-tuning (Wang et al. 2024): absolute likelihoods of both answers, no reference.

    L = -avg(y_w) + lambda [ -log s(log odds(y_w)) - log s(-log odds(y_l)) ]
      = -(1 + lambda) avg(y_w) - lambda log(1 - exp(avg(y_l))),        since log s(log odds) = avg

avg(y) = log pi(y) / |y|. Likelihood on the chosen answer, sequence-level unlikelihood on the rejected one.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.odds import log1mexp, log_odds
from pipeline.objectives.shared.pairs import averages, compared, pairs_of


@dataclass(frozen=True)
class Settings:
    """Hyper-parameter of ASFT."""

    odds_weight: float = setting(1.0, low=0.0)
    """lambda. The paper's default is not at hand; sweep 0.1 to 1."""


def asft_losses(chosen_logps: Tensor, rejected_logps: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor,
                odds_weight: float) -> Tensor:
    """ASFT loss of each pair.

    Args:
        chosen_logps, rejected_logps: (G,) log pi of the two completions, sums over tokens, nats.
        chosen_lengths, rejected_lengths: (G,) numbers of completion tokens.
        odds_weight: lambda, >= 0.

    Returns: (G,), each >= 0.
    """
    chosen, rejected = averages(chosen_logps, chosen_lengths), averages(rejected_logps, rejected_lengths)
    return -(1.0 + odds_weight) * chosen - odds_weight * log1mexp(rejected)


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics of a comparison; the rewards are log odds. Raises UserError for more than two
    completions.
    """
    pairs = pairs_of(batch, "asft")
    losses = asft_losses(pairs.chosen, pairs.rejected, *pairs.lengths, settings.odds_weight)
    chosen, rejected = averages(pairs.chosen, pairs.chosen_lengths), averages(pairs.rejected, pairs.rejected_lengths)
    return compared(pairs.usable, losses, log_odds(chosen), log_odds(rejected))


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True))
