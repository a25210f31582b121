"""Identity Preference Optimization (Azar et al. 2023, Eq. 17): a squared loss to a finite margin.

    normalize=True    L = ( a / |y_w| - b / |y_l| - 1 / (2 tau) )^2     averages, the default and TRL's form
    normalize=False   L = ( h - 1 / (2 tau) )^2                         sums, as printed and in the DPO repository

The target is 1 / (2 tau) nats per token or per sequence: orders of magnitude apart. The IPO authors confirmed the
averaged form to TRL. The gradient is linear in the residual, so clip it.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import averages, compared, log_ratios, with_anchor


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of IPO."""

    tau: float = setting(0.1, above=0.0)
    """Regularisation; the target margin is 1 / (2 tau). TRL calls it beta; 0.1."""

    normalize: bool = True
    """Divide each log-ratio by the number of its completion's tokens."""


def ipo_losses(chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
               chosen_lengths: Tensor, rejected_lengths: Tensor, tau: float, normalize: bool = True) -> Tensor:
    """IPO loss of each pair.

    Args:
        chosen_logps, rejected_logps: (G,) log pi of the two completions, sums over tokens, nats.
        ref_chosen_logps, ref_rejected_logps: (G,) the same under the frozen reference.
        chosen_lengths, rejected_lengths: (G,) numbers of completion tokens; unused where normalize is False.
        tau: > 0. normalize: averages over tokens instead of sums.

    Returns: (G,), each >= 0; 1 / (4 tau^2) where policy and reference agree.
    """
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    if normalize:
        chosen, rejected = averages(chosen, chosen_lengths), averages(rejected, rejected_lengths)
    return (chosen - rejected - 1.0 / (2.0 * tau)).square()


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics of a comparison; rewards are tau times the log-ratios compared.

    Raises UserError for more than two completions.
    """
    pairs, four = with_anchor(batch, "ipo")
    losses = ipo_losses(*four, *pairs.lengths, settings.tau, settings.normalize)
    chosen, rejected = log_ratios(*four)
    if settings.normalize:
        chosen, rejected = averages(chosen, pairs.chosen_lengths), averages(rejected, pairs.rejected_lengths)
    return compared(pairs.usable, losses, settings.tau * chosen, settings.tau * rejected)


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True, reference=True))
