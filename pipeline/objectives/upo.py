"""Uncertainty-enhanced preference optimization (Wang et al. 2024): DPO smoothed by each pair's own uncertainty.

    L = -(1 - alpha_j) log s(beta h) - alpha_j log s(-beta h) + lambda (-log pi(y_w))

    uncertainty   alpha_j = IG_j / (2 ln 2)       0 for a certain pair, 1/2 for one the estimator knows nothing about
    printed       alpha_j = 1 / (P_j + 1)         as in the paper; with P_j near 1/n it trains on flipped labels

IG_j is the information gain of the estimator's Monte-Carlo dropout passes on pair j, P_j the pair's share in sampling.
The one number of a pair is its chosen completion's score. The log-ratios are taken against the previous iteration's
policy. The likelihood term is printed with the sign that would lower it; read as Pang et al. (2024) have it.
"""

import math
from dataclasses import dataclass

from pipeline.config import setting
from pipeline.errors import UserError
from pipeline.objectives.auxiliary import SFT, sft_losses
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import at_least_float32, compared, log_ratios, smoothed_losses, with_anchor
from pipeline.objectives.shared.scores import refuse_unless_probabilities, scores_of


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of UPO."""

    beta: float = setting(0.1, above=0.0)
    """Strength of the pull to the previous policy, 1/nats. Not in the paper's text; 0.1 is DPO's."""

    labels: str = setting("uncertainty", choices=("uncertainty", "printed"))
    """What the chosen completion's score is and how it becomes alpha: IG_j in nats, 0 .. ln 2, or P_j in [0, 1]."""

    sft_weight: float = setting(1.0, low=0.0)
    """lambda. Not in the paper's text; 1 is Pang et al.'s."""

    sft_normalise: str = setting("mean", choices=SFT)
    """The likelihood term per token of the completion (mean), summed, or averaging to the batch's token mean."""

    against: str = setting("previous", choices=("previous", "reference"))
    """The frozen model of the log-ratios. Paper: the policy the iteration began with."""


def needs(settings: Settings) -> Needs:
    previous, score = settings.against == "previous", "information_gain"
    score = score if settings.labels == "uncertainty" else "sampling_share"
    return Needs(pairs=True, scores=True, previous=previous, reference=not previous, score=score)


def flips(values: Tensor, labels: str) -> Tensor:
    """alpha of each pair, without gradient.

    Args:
        values: (G,) information gains in nats, 0 <= x <= ln 2 ("uncertainty"), or sampling shares ("printed").
        labels: one of the two.

    Returns: (G,) in [0, 1/2], or in [1/2, 1] as printed. Raises UserError for values out of range.
    """
    values = at_least_float32(values.detach())
    if labels == "printed":
        refuse_unless_probabilities(values, "labels=printed")
        return 1.0 / (values + 1.0)
    wrong = values[(values < -1e-6) | (values > math.log(2.0) + 1e-6)]
    if wrong.numel():
        raise UserError(f"objective: with labels=uncertainty a pair's score is its information gain in nats, found "
                        f"{wrong[0].item():g}, expected 0 <= x <= 0.693147; select with the uncertainty filter")
    return (values / (2.0 * math.log(2.0))).clamp(0.0, 0.5)


def upo_losses(chosen_logps: Tensor, rejected_logps: Tensor, previous_chosen_logps: Tensor,
               previous_rejected_logps: Tensor, alphas: Tensor, beta: float) -> Tensor:
    """UPO's preference term for each pair, without the likelihood.

    Args:
        chosen_logps, rejected_logps: (G,) log pi of the two completions, sums over tokens, nats.
        previous_chosen_logps, previous_rejected_logps: (G,) the same under the policy of the previous iteration.
        alphas: (G,) in [0, 1], see `flips`. beta: > 0.

    Returns: (G,), each > 0; ln 2 where the two policies agree.
    """
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, previous_chosen_logps, previous_rejected_logps)
    return smoothed_losses(beta * (chosen - rejected), at_least_float32(alphas))


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,), the metrics of a comparison and flip, the alpha used.

    Raises UserError for more than two completions and for scores out of range.
    """
    pairs, four = with_anchor(batch, "upo", settings.against)
    alphas = flips(pairs.sides(scores_of(batch, "upo"))[0], settings.labels)
    losses = upo_losses(*four, alphas, settings.beta)
    nll = sft_losses(pairs.chosen, pairs.chosen_lengths, settings.sft_normalise, batch.mean_chosen_length)
    chosen, rejected = log_ratios(*four)
    rewards = settings.beta * chosen, settings.beta * rejected
    return compared(pairs.usable, losses + settings.sft_weight * nll, *rewards, flip=alphas)


OBJECTIVE = Objective(Settings, loss, needs=needs)
