"""DPO-Positive, the loss of Smaug (Pal et al. 2024, Eq. 3): DPO that does not let the chosen answer become unlikely.

    L = -log s( beta (a - b - lambda max(0, log ref(y_w) - log pi(y_w))) )

The penalty stands inside the sigmoid and inside beta, and is a log-ratio: where the paper prints a quotient of logs,
its own gradient says difference. Subgradient 0 at the kink, which is where every training starts. A violated pair costs
about beta lambda nats per nat below the reference, so expect spikes and clip gradients. Sums over tokens.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import compared, log_ratios, log_sigmoid, with_anchor


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of DPOP."""

    beta: float = setting(0.3, above=0.0)
    """Strength of the pull to the reference, 1/nats. Paper: 0.3."""

    penalty: float = setting(50.0, low=0.0)
    """lambda. Paper: 50. 0 is DPO."""


def dpop_losses(chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
                beta: float, penalty: float) -> Tensor:
    """DPOP loss of each pair.

    Args:
        chosen_logps, rejected_logps: (G,) log pi of the two completions, sums over tokens, nats.
        ref_chosen_logps, ref_rejected_logps: (G,) the same under the frozen reference.
        beta: > 0. penalty: lambda, >= 0.

    Returns: (G,), each > 0; ln 2 where policy and reference agree.
    """
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return -log_sigmoid(beta * (chosen - rejected - penalty * (-chosen).relu()))


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,), the metrics of a comparison, whose chosen reward contains the penalty, and violated (a < 0).

    Raises UserError for more than two completions.
    """
    pairs, four = with_anchor(batch, "dpop")
    losses = dpop_losses(*four, settings.beta, settings.penalty)
    chosen, rejected = log_ratios(*four)
    reward = settings.beta * (chosen - settings.penalty * (-chosen).relu())
    return compared(pairs.usable, losses, reward, settings.beta * rejected, violated=chosen < 0)


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True, reference=True))
