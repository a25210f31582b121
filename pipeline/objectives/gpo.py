"""GPO, general preference optimisation (Zhang et al. 2024): SPPO with scores in place of win rates.

    L = (log pi(y_w)/pi_t(y_w) - s_avg(y_w)/beta)^2 + (log pi(y_l)/pi_t(y_l) - s_avg(y_l)/beta)^2

pi_t is the policy this iteration began with; s_avg(y) the mean over the K samples y_j of the antisymmetric score
s(y > y_j), y itself included. Sums over tokens; at beta = 0.001 a score of 0.1 asks for 100 nats.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import at_least_float32, compared, log_ratios, rewards_of, with_anchor
from pipeline.objectives.shared.scores import scores_of


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of GPO."""

    beta: float = setting(0.001, above=0.0)
    """Inverse step size, unit of the scores per nat. Paper: 0.001 to 0.002."""

    scores: str = setting("rewards", choices=("rewards", "averages"))
    """rewards: of any reward model; s(y > y') is their difference, averaged over the pair itself. averages: s_avg
    already (see `gpm.average_scores`), over all samples of the prompt."""


def gpo_losses(chosen_logps: Tensor, rejected_logps: Tensor, previous_chosen_logps: Tensor,
               previous_rejected_logps: Tensor, chosen_scores: Tensor, rejected_scores: Tensor, beta: float) -> Tensor:
    """GPO loss of each pair.

    Args: the first four: (G,) sums over tokens, nats, under the policy and pi_t.
        chosen_scores, rejected_scores: (G,) s_avg of the two answers. beta: > 0.

    Returns: (G,), >= 0; (s_w^2 + s_l^2)/beta^2 where the policy is pi_t.
    """
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, previous_chosen_logps, previous_rejected_logps)
    targets = at_least_float32(chosen_scores) / beta, at_least_float32(rejected_scores) / beta
    return (chosen - targets[0]).square() + (rejected - targets[1]).square()


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics of a comparison; rewards are beta times the log-ratio to pi_t, fitted at s_avg.

    Raises UserError for more than two completions, ValueError without scores or previous log-probs.
    """
    pairs, four = with_anchor(batch, "gpo", "previous")
    scores = pairs.sides(scores_of(batch, "gpo").detach())
    if settings.scores == "rewards":
        gap = 0.5 * (scores[0] - scores[1])
        scores = (gap, -gap)
    return compared(pairs.usable, gpo_losses(*four, *scores, settings.beta), *rewards_of(four, settings.beta))


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True, previous=True, scores=True))
