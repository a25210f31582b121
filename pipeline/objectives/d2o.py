"""Distributional dispreference optimization (Duan et al. 2024): learning from negative human data only.

    L = -log s( (beta / K) sum_k (log pi(y_k) - log ref(y_k)) - alpha (log pi(y_l) - log ref(y_l)) )

y_l is the human negative, y_1 .. y_K are the model's own samples for the prompt. In a group, completion 1 is the
negative and the completions 0, 2, 3, ... are the own samples: a pair has K = 1, and a group with own samples appended
keeps its first two places. The gradient flows through all K + 1. K = 1 with alpha = beta is DPO. Sums over tokens.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import at_least_float32, column, compared, log_sigmoid, ratios_of, row_means


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of D2O."""

    beta: float = setting(0.1, above=0.0)
    """Weight of the own samples' mean log-ratio, 1/nats. Paper: 0.1, with K = 11."""

    alpha: float = setting(0.1, above=0.0)
    """Weight of the negative's log-ratio, 1/nats. Paper: 0.1."""


def d2o_losses(own_log_ratios: Tensor, own: Tensor, negative_log_ratios: Tensor, beta: float, alpha: float) -> Tensor:
    """D2O loss of each prompt.

    Args:
        own_log_ratios: (G, K) log pi - log ref- of the model's own samples, sums over tokens, nats.
        own: (G, K) bool, which of them exist; other entries are ignored.
        negative_log_ratios: (G,) log pi - log ref+ of the human negative. The paper allows two references, a more
            harmful ref- and a more helpful ref+, and uses the original model for both.
        beta, alpha: > 0.

    Returns: (G,), each > 0; ln 2 where policy and reference agree.
    """
    return -log_sigmoid(beta * row_means(own_log_ratios, own) - alpha * at_least_float32(negative_log_ratios))


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,), the metrics of a comparison, the own samples' mean being the chosen side, and own_samples (K).

    A group without a negative or without an own sample has loss 0.
    """
    import torch

    present = batch.present
    ratios = ratios_of(batch, "d2o")
    own = present & (torch.arange(present.shape[1], device=present.device) != 1)
    negative = column(present, 1, present.any(dim=1)).bool()
    usable = negative & own.any(dim=1)
    rejected = column(ratios, 1, usable)
    losses = d2o_losses(ratios, own, rejected, settings.beta, settings.alpha)
    rewards = settings.beta * row_means(ratios, own), settings.alpha * rejected
    return compared(usable, losses, *rewards, own_samples=own.sum(dim=1))


OBJECTIVE = Objective(Settings, loss, needs=Needs(lists=True, reference=True))
