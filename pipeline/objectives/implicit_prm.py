"""Implicit process reward model (Yuan et al. 2024): outcome cross-entropy on the log-ratio.

    r = beta (log pi(y|x) - log ref(y|x));   L = -l log s(r) - (1 - l) log s(-r),   l: is the response correct
    process reward (of the trained policy):  q_t = beta sum_{i<=t} log pi(y_i)/ref(y_i),   r_t = q_t - q_{t-1}

A labelled single response has the one term its label says; of a pair or list the first is correct and the others are
not, and their terms add. (The authors' README prints the loss without its minus sign.) Sums over tokens.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.labelled import labelled, labelled_metrics
from pipeline.objectives.shared.pairs import at_least_float32, log_sigmoid, masked


@dataclass(frozen=True)
class Settings:
    """Hyper-parameter of the implicit PRM."""

    beta: float = setting(0.05, above=0.0)
    """Scale of the reward, 1/nats. 0.05: beta_train of PRIME, the authors' later code, which trains this loss. The
    paper's own value was not available."""


def implicit_prm_losses(logps: Tensor, ref_logps: Tensor, correct: Tensor, beta: float) -> Tensor:
    """Cross-entropy of each response's label.

    Args:
        logps, ref_logps: sums over response tokens, nats, any one shape.
        correct: bool, the same shape. beta: > 0, 1/nats.

    Returns: the same shape, each > 0; ln 2 where policy and reference agree.
    """
    rewards = beta * (at_least_float32(logps) - at_least_float32(ref_logps))
    return -log_sigmoid(rewards.where(correct, -rewards))


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and metrics: mean reward of the correct and of the others (0 where there is none), their margin,
    accuracy (share of responses on their side of 0). Raises ValueError without a reference.
    """
    examples = labelled(batch, "implicit_prm")
    ratios, wanted, unwanted = examples.ratios, examples.wanted, examples.unwanted
    losses = masked(implicit_prm_losses(ratios, ratios.new_zeros(ratios.shape), wanted, settings.beta), batch.present)
    rewards = settings.beta * ratios
    right = (wanted & (rewards > 0)) | (unwanted & (rewards < 0))
    accuracy = right.sum(dim=1) / batch.present.sum(dim=1).clamp(min=1)
    return losses.sum(dim=1), labelled_metrics(examples, settings.beta, accuracy=accuracy)


OBJECTIVE = Objective(Settings, loss, needs=Needs(labels=True, reference=True))
