"""The normalised hinge loss of RSO (Liu et al. 2023, Eq. 10).

    L = max(0, 1 - gamma h)

A pair costs nothing once its margin h reaches 1 / gamma nats. Subgradient 0 at the kink. Sums over tokens. Without the
reference it is SLiC's rank loss.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import compared, log_ratios, rewards_of, with_anchor


@dataclass(frozen=True)
class Settings:
    """Hyper-parameter of the hinge loss."""

    gamma: float = setting(0.05, above=0.0)
    """Slope, 1/nats; the margin is 1 / gamma. RSO: 0.05. TRL calls it beta."""


def hinge_losses(chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
                 gamma: float) -> Tensor:
    """Hinge loss of each pair.

    Args:
        chosen_logps, rejected_logps: (G,) log pi of the two completions, sums over tokens, nats.
        ref_chosen_logps, ref_rejected_logps: (G,) the same under the frozen reference.
        gamma: > 0.

    Returns: (G,), each >= 0; 1 where policy and reference agree.
    """
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return (1.0 - gamma * (chosen - rejected)).relu()


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics of a comparison. Raises UserError for more than two completions."""
    pairs, four = with_anchor(batch, "hinge")
    return compared(pairs.usable, hinge_losses(*four, settings.gamma), *rewards_of(four, settings.gamma))


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True, reference=True))
