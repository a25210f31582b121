"""APO-down (D'Oosterlinck et al. 2024, Eq. 8): lower both answers, the rejected one more.

    L = s(beta a) + (1 - s(beta (a - b)))

For chosen answers worse than the model's own. The gradient vanishes far out on both sides. Sums over tokens.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import compared, log_ratios, rewards_of, with_anchor


@dataclass(frozen=True)
class Settings:
    """Hyper-parameter of APO-down."""

    beta: float = setting(0.1, above=0.0)
    """Scale of the implicit reward, 1/nats. Paper: 0.1."""


def apo_down_losses(chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
                    beta: float) -> Tensor:
    """APO-down loss of each pair.

    Args:
        chosen_logps, rejected_logps: (G,) log pi of the two completions, sums over tokens, nats.
        ref_chosen_logps, ref_rejected_logps: (G,) the same under the frozen reference.
        beta: > 0.

    Returns: (G,) in [0, 2]; 1 where policy and reference agree.
    """
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return (beta * chosen).sigmoid() + (-beta * (chosen - rejected)).sigmoid()


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics of a comparison. Raises UserError for more than two completions."""
    pairs, four = with_anchor(batch, "apo_down")
    return compared(pairs.usable, apo_down_losses(*four, settings.beta), *rewards_of(four, settings.beta))


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True, reference=True))
