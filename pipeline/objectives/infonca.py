"""InfoNCA (Chen et al. 2024): cross-entropy from the rewards' soft labels to the policy's choice among K answers.

    r_i = beta (log pi(y_i) - log ref(y_i)),   t = softmax_i(R_i / alpha)
    L   = -sum_i t_i log softmax(r)_i

K = 2 with one-hot labels (alpha -> 0) is DPO. The forward-KL sibling of EXO on rewards. Sums over tokens.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.lists import comparable, compared_list, log_softmax_over, soft_labels
from pipeline.objectives.shared.pairs import at_least_float32, masked, ratios_of, reference_of
from pipeline.objectives.shared.scores import scores_of


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of InfoNCA."""

    beta: float = setting(0.01, above=0.0)
    """Scale of the implicit reward, 1/nats. Paper: 0.01."""

    alpha: float = setting(0.01, above=0.0)
    """Temperature of the labels, in the unit of the rewards. Paper: 0.01; the authors' yaml: 1e-4, nearly one-hot."""

    first_bonus: float = setting(0.0, low=0.0)
    """Added to the reward of completion 0 to break ties. The authors' code adds 0.01, the paper nothing."""


def infonca_losses(logps: Tensor, ref_logps: Tensor, scores: Tensor, present: Tensor, beta: float,
                   alpha: float) -> Tensor:
    """InfoNCA loss of each group.

    Args:
        logps, ref_logps: (G, K) sums over completion tokens, nats.
        scores: (G, K) rewards. present: (G, K) bool; other entries are ignored.
        beta: > 0, 1/nats. alpha: > 0, in the unit of the rewards.

    Returns: (G,), each > 0; ln K where policy and reference agree; 0 for a group without completion 0 or any other.
    """
    log_q = log_softmax_over(beta * (masked(logps, present) - masked(ref_logps, present)), present)
    labels = soft_labels(scores, present, alpha)[0]
    return masked(-(labels * log_q).sum(dim=1), comparable(present))


def with_bonus(scores: Tensor, bonus: float) -> Tensor:
    """(G, K) rewards with `bonus` added to completion 0."""
    import torch

    scores = at_least_float32(scores)
    return torch.cat([scores[:, :1] + bonus, scores[:, 1:]], dim=1)


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics of a list. Raises ValueError without a reference or scores."""
    reference = reference_of(batch, "infonca")
    scores = with_bonus(scores_of(batch, "infonca"), settings.first_bonus)
    losses = infonca_losses(batch.logps, reference, scores, batch.present, settings.beta, settings.alpha)
    rewards = settings.beta * ratios_of(batch, "infonca")
    return compared_list(comparable(batch.present), batch.present, losses, rewards)


OBJECTIVE = Objective(Settings, loss, needs=Needs(lists=True, reference=True, scores=True))
