"""NCA on rewards (Chen et al. 2024): noise contrastive alignment of K answers, each judged by itself.

    r_i = beta (log pi(y_i) - log ref(y_i)),   t = softmax_i(R_i / alpha)
    L   = -sum_i t_i log s(r_i) - (1/K) sum_i log s(-r_i)

The limit alpha -> 0 with K = 2 is NCA on pairs. Being absolute, it keeps the likelihood of good answers from falling.
Sums over tokens.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.infonca import with_bonus
from pipeline.objectives.shared.lists import comparable, compared_list, soft_labels
from pipeline.objectives.shared.pairs import log_sigmoid, masked, ratios_of, reference_of, row_means
from pipeline.objectives.shared.scores import scores_of


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of NCA on rewards."""

    beta: float = setting(0.01, above=0.0)
    """Scale of the implicit reward, 1/nats. Paper: 0.01."""

    alpha: float = setting(0.01, above=0.0)
    """Temperature of the labels, in the unit of the rewards. Paper: 0.01; the authors' yaml: 1e-4, nearly one-hot."""

    first_bonus: float = setting(0.0, low=0.0)
    """Added to the reward of completion 0 to break ties. The authors' code adds 0.01, the paper nothing."""


def nca_losses(logps: Tensor, ref_logps: Tensor, scores: Tensor, present: Tensor, beta: float, alpha: float) -> Tensor:
    """NCA loss of each group.

    Args:
        logps, ref_logps: (G, K) sums over completion tokens, nats.
        scores: (G, K) rewards. present: (G, K) bool; other entries are ignored, K counts the present ones.
        beta: > 0, 1/nats. alpha: > 0, in the unit of the rewards.

    Returns: (G,), each > 0; 2 ln 2 where policy and reference agree; 0 for a group without completion 0 or any other.
    """
    rewards = beta * (masked(logps, present) - masked(ref_logps, present))
    labels = soft_labels(scores, present, alpha)[0]
    attract = (labels * log_sigmoid(rewards)).sum(dim=1)
    repel = row_means(log_sigmoid(-rewards), present)
    return masked(-attract - repel, comparable(present))


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics of a list. Raises ValueError without a reference or scores."""
    reference = reference_of(batch, "nca")
    scores = with_bonus(scores_of(batch, "nca"), settings.first_bonus)
    losses = nca_losses(batch.logps, reference, scores, batch.present, settings.beta, settings.alpha)
    rewards = settings.beta * ratios_of(batch, "nca")
    return compared_list(comparable(batch.present), batch.present, losses, rewards)


OBJECTIVE = Objective(Settings, loss, needs=Needs(lists=True, reference=True, scores=True))
