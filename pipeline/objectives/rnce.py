"""Ranking noise-contrastive estimation, the loss of MC-PO (Chen et al. 2025, Eq. 7).

    r_i = beta (log pi(y_i) - log ref(y_i))
    L   = -log [ exp r_0 / sum_{i=0..M} exp r_i ]

An (M+1)-way cross-entropy whose right answer is the preferred completion y_0; the others are samples of the proposal.
M = 1 is exactly DPO. Which M of the candidates stand in the group is the negatives' part, not the loss's.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import at_least_float32, comparison, masked, reference_of, row_means, softplus


@dataclass(frozen=True)
class Settings:
    """Hyper-parameter of RNCE."""

    beta: float = setting(0.1, above=0.0)
    """Scale of the implicit reward, 1/nats. Not in the paper's text; 0.1 is DPO's, sweep 0.01 and 0.05 beside it."""


def rnce_losses(logps: Tensor, ref_logps: Tensor, present: Tensor, beta: float) -> Tensor:
    """RNCE loss of each group.

    Args:
        logps, ref_logps: (G, 1 + M) sums over completion tokens, nats; column 0 is the preferred completion.
        present: (G, 1 + M) bool; other entries are ignored.
        beta: > 0.

    Returns: (G,), ln(M + 1) where policy and reference agree; 0 for a group without y_0 or without any negative.
    """
    rewards = beta * (masked(logps, present) - masked(ref_logps, present))
    negatives = present[:, 1:]
    usable = present[:, 0] & negatives.any(dim=1)
    # log(1 + sum exp(r_i - r_0)) = softplus(logsumexp(r_i - r_0)): no cancellation, and M = 1 is DPO's own arithmetic.
    # A group without negatives keeps zeros in the logsumexp: all -inf would put NaN into the gradient.
    differences = (rewards[:, 1:] - rewards[:, :1]).masked_fill(~negatives & usable[:, None], float("-inf"))
    if differences.shape[1] == 0:
        return rewards.new_zeros(len(rewards))
    return masked(softplus(differences.logsumexp(dim=1)), usable)


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and metrics over the present negatives: their mean reward, the margin of y_0 over that mean,
    accuracy (y_0 above the best of them), negatives (how many). Raises ValueError without a reference.
    """
    reference = reference_of(batch, "rnce")
    losses = rnce_losses(batch.logps, reference, batch.present, settings.beta)
    negatives = batch.present[:, 1:] & batch.present[:, :1]
    number = negatives.sum(dim=1)
    usable = number > 0
    logps = masked(batch.logps, batch.present).detach()
    rewards = settings.beta * (logps - masked(at_least_float32(reference), batch.present))
    beaten = (rewards[:, :1] > rewards[:, 1:]) | ~negatives
    return losses, comparison(masked(rewards[:, 0], usable), row_means(rewards[:, 1:], negatives),
                              accuracy=beaten.all(dim=1) & usable, negatives=number)


OBJECTIVE = Objective(Settings, loss, needs=Needs(lists=True, reference=True))
