"""Direct Preference Optimization (Rafailov et al. 2023, Eq. 7) and its label-smoothed form, cDPO (Mitchell 2023).

    h      = (log pi(y_w) - log ref(y_w)) - (log pi(y_l) - log ref(y_l))
    L_DPO  = -log s(beta h)
    L_cDPO = -(1 - eps) log s(beta h) - eps log s(-beta h)

cDPO is fitted at the finite margin h = logit(1 - eps) / beta. Sums over tokens, not averages.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import compared, log_ratios, rewards_of, smoothed_losses, with_anchor


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of DPO and cDPO."""

    beta: float = setting(0.1, above=0.0)
    """Strength of the pull to the reference, 1/nats. Paper: 0.1 (0.5 for summarisation); 0.01 for larger models."""

    label_smoothing: float = setting(0.0, low=0.0, below=0.5)
    """eps, the assumed share of flipped labels. 0: DPO. cDPO: 0.1 is usual."""


def dpo_losses(chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
               beta: float, label_smoothing: float = 0.0) -> Tensor:
    """DPO / cDPO loss of each pair.

    Args:
        chosen_logps, rejected_logps: (G,) log pi of the preferred and the other completion, sums over tokens, nats.
        ref_chosen_logps, ref_rejected_logps: (G,) the same under the frozen reference.
        beta: > 0, typically 0.01 to 0.5.
        label_smoothing: eps in [0, 1/2].

    Returns: (G,), each > 0; ln 2 where policy and reference agree.
    """
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return smoothed_losses(beta * (chosen - rejected), label_smoothing)


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and metrics: rewards (beta times log-ratio), margin, accuracy (margin > 0).

    Raises UserError for groups of more than two completions, ValueError without reference log-probs.
    """
    pairs, four = with_anchor(batch, "dpo")
    losses = dpo_losses(*four, settings.beta, settings.label_smoothing)
    return compared(pairs.usable, losses, *rewards_of(four, settings.beta))


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True, reference=True))
