"""Contrastive preference optimization (Xu et al. 2024): DPO with a uniform reference, and the likelihood beside it.

    L = -log s( beta (log pi(y_w) - log pi(y_l)) ) + alpha NLL(y_w)

    sum     NLL = -log pi(y_w), the paper's
    batch   its mean over all chosen tokens of the batch, TRL's: far weaker at the same alpha
    mean    its mean over the completion's own tokens

Sums over tokens in the preference term, no reference.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.auxiliary import SFT, sft_losses
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import at_least_float32, compared, log_sigmoid, pairs_of


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of CPO."""

    beta: float = setting(0.1, above=0.0)
    """Scale of the log-probs, 1/nats. Paper: 0.1."""

    alpha: float = setting(1.0, low=0.0)
    """Weight of the likelihood. Paper: 1. TRL calls it cpo_alpha."""

    sft_normalise: str = setting("sum", choices=SFT)
    """Which of the three NLLs above."""


def cpo_losses(chosen_logps: Tensor, rejected_logps: Tensor, chosen_lengths: Tensor, beta: float, alpha: float,
               sft_normalise: str = "sum", mean_chosen_length: float | None = None) -> Tensor:
    """CPO loss of each pair.

    Args:
        chosen_logps, rejected_logps: (G,) log pi of the two completions, sums over tokens, nats.
        chosen_lengths: (G,) numbers of tokens of the chosen completion.
        beta: > 0. alpha: >= 0. sft_normalise: "sum", "mean" or "batch".
        mean_chosen_length: for "batch", the mean of chosen_lengths over the global batch; None: over these pairs.

    Returns: (G,), each > 0.
    """
    preference = -log_sigmoid(beta * (at_least_float32(chosen_logps) - at_least_float32(rejected_logps)))
    return preference + alpha * sft_losses(chosen_logps, chosen_lengths, sft_normalise, mean_chosen_length)


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics of a comparison. Raises UserError for more than two completions."""
    pairs = pairs_of(batch, "cpo")
    losses = cpo_losses(pairs.chosen, pairs.rejected, pairs.chosen_lengths, settings.beta, settings.alpha,
                        settings.sft_normalise, batch.mean_chosen_length)
    return compared(pairs.usable, losses, settings.beta * pairs.chosen, settings.beta * pairs.rejected)


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True))
