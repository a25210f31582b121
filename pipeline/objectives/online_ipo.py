"""Online IPO (Calandriello et al. 2024; both versions in Zhou et al. 2025): regression to preference differences.

    version 1 (mirror descent):  L = (lr(y) - lr(y') - (P(y > y'') - P(y' > y''))/beta)^2,   y'' ~ policy
    version 2:                   L = (lr(y) - lr(y') - (P(y > y') - 1/2)/beta)^2,             y, y' ~ policy

with lr = log pi - log ref. Neither P nor the samples carry a gradient. The preference model is Bradley-Terry on the
scores, P(y > y') = s(R(y) - R(y')).

Columns of a group: y, y', then any number of opponents y'', whose preferences are averaged (only their scores are
used). A pair without opponents has y'' = y': when all come from the same distribution P(y' > y'') is 1/2 in
expectation, the authors' way of judging once. The loss does not care which of y and y' comes first.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.lists import compared_list
from pipeline.objectives.shared.pairs import at_least_float32, averages, both, masked, paired, ratios_of, row_means
from pipeline.objectives.shared.scores import scores_of, win_probabilities


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of online IPO."""

    beta: float = setting(0.1, above=0.0)
    """Strength of the pull to the reference, 1/nats (per token with log_ratio=avg). EGPO's code: 0.1."""

    version: int = setting(1, choices=(1, 2))
    """1: against opponents y'' of the policy; y and y' may come from anywhere. 2: against each other; they must be the
    policy's own samples."""

    log_ratio: str = setting("avg", choices=("sum", "avg"))
    """lr averaged over tokens, as the authors' language-model code does, or summed, as in the paper's equations."""


def needs(settings: Settings) -> Needs:
    """Version 1 takes opponents beside the pair, in any order."""
    if settings.version == 1:
        return Needs(reference=True, scores=True, lists=True, takes=("drawn",))
    return Needs(reference=True, scores=True, pairs=True)


def online_ipo_losses(first: Tensor, second: Tensor, difference: Tensor, beta: float) -> Tensor:
    """The squared residual of each pair, for both versions and for both half steps of EGPO.

    Args:
        first, second: (G,) log-ratios of y and y', nats (or nats per token), with gradient.
        difference: (G,) in [-1, 1]: P(y > y'') - P(y' > y''), or P(y > y') - 1/2.
        beta: > 0.

    Returns: (G,), >= 0; (difference / beta)^2 where policy and reference agree.
    """
    target = at_least_float32(difference.detach()) / beta
    return (at_least_float32(first) - at_least_float32(second) - target).square()


def preference_differences(scores: Tensor, present: Tensor) -> Tensor:
    """P(y > y'') - P(y' > y''), mean over the opponents y'' in the columns from 2 on.

    Args: scores: (G, K) rewards. present: (G, K) bool, K >= 2.

    Returns: (G,) in [-1, 1], without gradient; P(y > y') - 1/2 for a group without opponents.
    """
    scores = masked(scores.detach(), present)
    first, second, opponents, there = scores[:, :1], scores[:, 1:2], scores[:, 2:], present[:, 2:]
    gaps = (first - opponents).sigmoid() - (second - opponents).sigmoid()
    against = row_means(gaps, there)
    return against.where(there.any(dim=1), (first - second).sigmoid()[:, 0] - 0.5)


def against_opponents(batch: LossInputs, objective: str, beta: float, log_ratio: str) -> Losses:
    """Losses and metrics of version 1, (G,). Raises ValueError without a reference or scores."""
    ratios, scores = ratios_of(batch, objective), scores_of(batch, objective)
    if batch.present.shape[1] < 2:
        usable = batch.present.new_zeros(len(batch.present))
        differences = at_least_float32(batch.logps.new_zeros(len(batch.logps)))
    else:
        usable = batch.present[:, 0] & batch.present[:, 1]
        differences = preference_differences(scores, batch.present)
    return _regression(batch, usable, ratios, differences, beta, log_ratio)


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,), the metrics of a comparison (rewards are beta lr) and target (nats, or nats per token).

    Raises UserError for more than two completions in version 2, ValueError without a reference or scores.
    """
    if settings.version == 1:
        return against_opponents(batch, "online_ipo", settings.beta, settings.log_ratio)
    usable = paired(batch, "online_ipo")
    ratios = ratios_of(batch, "online_ipo")
    probabilities = win_probabilities(*both(scores_of(batch, "online_ipo"), usable), "rewards")
    return _regression(batch, usable, ratios, probabilities - 0.5, settings.beta, settings.log_ratio)


def _regression(batch: LossInputs, usable: Tensor, ratios: Tensor, differences: Tensor, beta: float,
                log_ratio: str) -> Losses:
    if log_ratio == "avg":
        ratios = averages(ratios, batch.lengths)
    first, second = both(ratios, usable)
    losses = online_ipo_losses(first, second, differences, beta)
    two = ratios[:, :2]
    return compared_list(usable, batch.present[:, :2], losses, beta * two, target=differences / beta)


OBJECTIVE = Objective(Settings, loss, needs=needs)
