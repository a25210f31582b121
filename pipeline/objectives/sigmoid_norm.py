"""Length-normalised DPO (Tulu 3, Lambert et al. 2024; TRL's sigmoid_norm).

    L = -log s( beta (a / |y_w| - b / |y_l|) )

Averages over tokens, so beta is two orders larger than DPO's.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import averages, compared, log_ratios, log_sigmoid, with_anchor


@dataclass(frozen=True)
class Settings:
    """Hyper-parameter of length-normalised DPO."""

    beta: float = setting(5.0, above=0.0)
    """Scale of the averaged log-ratios, tokens/nat. Tulu 3: 5."""


def sigmoid_norm_losses(chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor,
                        ref_rejected_logps: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor,
                        beta: float) -> Tensor:
    """Length-normalised DPO loss of each pair.

    Args:
        chosen_logps, rejected_logps: (G,) log pi of the two completions, sums over tokens, nats.
        ref_chosen_logps, ref_rejected_logps: (G,) the same under the frozen reference.
        chosen_lengths, rejected_lengths: (G,) numbers of completion tokens.
        beta: > 0.

    Returns: (G,), each > 0; ln 2 where policy and reference agree.
    """
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return -log_sigmoid(beta * (averages(chosen, chosen_lengths) - averages(rejected, rejected_lengths)))


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics of a comparison. Raises UserError for more than two completions."""
    pairs, four = with_anchor(batch, "sigmoid_norm")
    losses = sigmoid_norm_losses(*four, *pairs.lengths, settings.beta)
    chosen, rejected = (averages(side, n) for side, n in zip(log_ratios(*four), pairs.lengths, strict=True))
    return compared(pairs.usable, losses, settings.beta * chosen, settings.beta * rejected)


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True, reference=True))
