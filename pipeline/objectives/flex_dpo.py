"""Flex-DPO (3D-Properties, Yan et al. 2024): DPO that pushes the rejected answer less than it pulls the chosen one.

    L = -log s(beta_w a - beta_l b) + w (-log pi(y_w)),    beta_l < beta_w

Equal betas are DPO. Sums over tokens.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.auxiliary import SFT, sft_losses
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import compared, log_ratios, log_sigmoid, with_anchor


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of Flex-DPO. Placeholders: the paper's values are not at hand."""

    beta_chosen: float = setting(0.1, above=0.0)
    """beta_w, weight of the chosen log-ratio, 1/nats."""

    beta_rejected: float = setting(0.05, above=0.0)
    """beta_l, weight of the rejected log-ratio, 1/nats; at most beta_w."""

    sft_weight: float = setting(0.0, low=0.0)
    """w, weight of the likelihood of the chosen answer, which the paper also adds."""

    sft_normalise: str = setting("mean", choices=SFT)
    """The likelihood per token of the completion (mean), summed, or averaging to the batch's token mean."""

    def check(self) -> list[tuple[str, str]]:
        if self.beta_rejected > self.beta_chosen:
            return [("beta_rejected", f"{self.beta_rejected!r} is out of range, expected 0 < x <= beta_chosen = "
                     f"{self.beta_chosen!r}")]
        return []


def flex_dpo_losses(chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
                    beta_chosen: float, beta_rejected: float) -> Tensor:
    """Flex-DPO loss of each pair, without the likelihood term.

    Args:
        chosen_logps, rejected_logps: (G,) log pi of the two completions, sums over tokens, nats.
        ref_chosen_logps, ref_rejected_logps: (G,) the same under the frozen reference.
        beta_chosen, beta_rejected: > 0.

    Returns: (G,), each > 0; ln 2 where policy and reference agree.
    """
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return -log_sigmoid(beta_chosen * chosen - beta_rejected * rejected)


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics of a comparison. Raises UserError for more than two completions."""
    pairs, four = with_anchor(batch, "flex_dpo")
    losses = flex_dpo_losses(*four, settings.beta_chosen, settings.beta_rejected)
    if settings.sft_weight > 0.0:
        nll = sft_losses(pairs.chosen, pairs.chosen_lengths, settings.sft_normalise, batch.mean_chosen_length)
        losses = losses + settings.sft_weight * nll
    chosen, rejected = log_ratios(*four)
    return compared(pairs.usable, losses, settings.beta_chosen * chosen, settings.beta_rejected * rejected)


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True, reference=True))
