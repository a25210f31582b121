"""Regularized preference optimization (Liu et al. 2024): DPO with the likelihood of the chosen answer beside it.

    sum     L = -log s(beta h) - eta beta log pi(y_w)              the paper and its main code; eta 0.005, beta 0.01
    mean    L = -log s(beta h) - eta log pi(y_w) / |y_w|           the official OpenRLHF code; eta 0.2, beta 0.5
    batch   L = -log s(beta h) - eta (token mean over the batch)   TRL's ["sigmoid", "sft"] with weights [1, eta]

Only the sum carries the factor beta. TRL's documented weight 0.005 on the token mean is not the paper's setting: for
answers of 300 tokens that would be about 0.015.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.auxiliary import SFT, sft_losses
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.dpo import dpo_losses
from pipeline.objectives.shared.pairs import compared, rewards_of, with_anchor


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of RPO."""

    beta: float = setting(0.01, above=0.0)
    """Strength of the pull to the reference, 1/nats. Paper: 0.01; with "mean" 0.5."""

    eta: float = setting(0.005, low=0.0)
    """Weight of the likelihood. Paper: 0.005; with "mean" 0.2. 0 is DPO."""

    sft_normalise: str = setting("sum", choices=SFT)
    """Which of the three forms above."""


def rpo_losses(chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
               chosen_lengths: Tensor, beta: float, eta: float, sft_normalise: str = "sum",
               mean_chosen_length: float | None = None) -> Tensor:
    """RPO loss of each pair.

    Args:
        chosen_logps, rejected_logps: (G,) log pi of the two completions, sums over tokens, nats.
        ref_chosen_logps, ref_rejected_logps: (G,) the same under the frozen reference.
        chosen_lengths: (G,) numbers of tokens of the chosen completion.
        beta: > 0. eta: >= 0. sft_normalise: "sum", "mean" or "batch".
        mean_chosen_length: for "batch", the mean of chosen_lengths over the global batch; None: over these pairs.

    Returns: (G,), each > 0.
    """
    preference = dpo_losses(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)
    weight = eta * beta if sft_normalise == "sum" else eta
    return preference + weight * sft_losses(chosen_logps, chosen_lengths, sft_normalise, mean_chosen_length)


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics of a comparison. Raises UserError for more than two completions."""
    pairs, four = with_anchor(batch, "rpo")
    losses = rpo_losses(*four, pairs.chosen_lengths, settings.beta, settings.eta, settings.sft_normalise,
                        batch.mean_chosen_length)
    return compared(pairs.usable, losses, *rewards_of(four, settings.beta))


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True, reference=True))
