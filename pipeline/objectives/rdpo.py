"""Provably robust DPO (Chowdhury et al. 2024): an unbiased estimate of the clean DPO loss under flipped labels.

    L = ( -(1 - eps) log s(beta h) + eps log s(-beta h) ) / (1 - 2 eps)

for labels that flip independently with rate eps. Unbounded below: far out it falls like -eps beta h / (1 - 2 eps), so
negative losses are normal, and unlike cDPO it never pulls back. eps = 0 is DPO. Sums over tokens.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import compared, log_ratios, log_sigmoid, rewards_of, with_anchor


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of rDPO."""

    beta: float = setting(0.1, above=0.0)
    """Strength of the pull to the reference, 1/nats. Paper: 0.1."""

    label_smoothing: float = setting(0.1, low=0.0, below=0.5)
    """eps, the rate at which labels are flipped. Paper: 0.1. At 1/2 a label says nothing and the loss is undefined."""


def rdpo_losses(chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
                beta: float, label_smoothing: float) -> Tensor:
    """rDPO loss of each pair (Chowdhury et al. 2024, Eq. 12).

    Args:
        chosen_logps, rejected_logps: (G,) log pi of the two completions, sums over tokens, nats.
        ref_chosen_logps, ref_rejected_logps: (G,) the same under the frozen reference.
        beta: > 0. label_smoothing: eps in [0, 1/2).

    Returns: (G,), any sign; ln 2 where policy and reference agree.
    """
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    logits = beta * (chosen - rejected)
    clean, flipped = -log_sigmoid(logits), -log_sigmoid(-logits)
    return ((1.0 - label_smoothing) * clean - label_smoothing * flipped) / (1.0 - 2.0 * label_smoothing)


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics of a comparison. Raises UserError for more than two completions."""
    pairs, four = with_anchor(batch, "rdpo")
    losses = rdpo_losses(*four, settings.beta, settings.label_smoothing)
    return compared(pairs.usable, losses, *rewards_of(four, settings.beta))


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True, reference=True))
