"""Alignment via optimal transport (Melnyk et al. 2024): DPO between sorted samples, so that one distribution dominates.

    paired      u = sort(log pi(y_w) - log pi(y_l)), v = sort(log ref(y_w) - log ref(y_l))
    unpaired    u = sort(a), v = sort(b)
    L_i = -(1 - eps) log s(beta (u_i - v_i)) - eps log s(-beta (u_i - v_i))

Sorted over the pairs of the global batch, and compared rank by rank: a batch objective. The gradient flows through the
values, not through the order. The loss of a rank is given to the group whose u has it. Sums over tokens.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import compared, log_ratios, rewards_of, smoothed_losses, with_anchor


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of AOT."""

    beta: float = setting(0.01, above=0.0)
    """Strength of the pull to the reference, 1/nats. Paper: 0.01."""

    paired: bool = True
    """Sort the margins of pairs (TRL's aot) or chosen and rejected log-ratios apart (aot_unpaired)."""

    label_smoothing: float = setting(0.0, low=0.0, below=0.5)
    """eps, as in cDPO."""


def aot_losses(chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
               beta: float, paired: bool = True, label_smoothing: float = 0.0) -> Tensor:
    """AOT losses of a whole batch of pairs, each at the place of the pair that holds the rank on the u side.

    Args:
        chosen_logps, rejected_logps: (G,) log pi of the two completions, sums over tokens, nats.
        ref_chosen_logps, ref_rejected_logps: (G,) the same under the frozen reference.
        beta: > 0. paired: sort margins, else the two sides. label_smoothing: eps in [0, 1/2].

    Returns: (G,), each > 0; ln 2 where policy and reference agree and `paired` is true.
    """
    # log chosen - log rejected under each model, or log policy - log reference of each answer
    middle = (ref_chosen_logps, rejected_logps) if paired else (rejected_logps, ref_chosen_logps)
    upper, lower = log_ratios(chosen_logps, *middle, ref_rejected_logps)
    ordered, places = upper.sort()
    losses = smoothed_losses(beta * (ordered - lower.sort().values), label_smoothing)
    return losses.new_zeros(losses.shape).scatter(0, places, losses)


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics of a comparison. Raises UserError for more than two completions."""
    pairs, four = with_anchor(batch, "aot")
    places = pairs.usable.nonzero()[:, 0]  # the others must not take part in the sort
    chosen, rejected, ref_chosen, ref_rejected = (v[places] for v in four)
    found = aot_losses(chosen, rejected, ref_chosen, ref_rejected, settings.beta, settings.paired,
                       settings.label_smoothing)
    losses = found.new_zeros(four[0].shape).scatter(0, places, found)
    return compared(pairs.usable, losses, *rewards_of(four, settings.beta))


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True, reference=True, batch=True))
