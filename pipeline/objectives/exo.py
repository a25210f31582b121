"""EXO on pairs (Ji et al. 2024, Eq. 16): the reverse KL from the policy's choice between two answers to the label's.

    z = beta h,   q = (s(z), s(-z)),   p = (1 - eps, eps)
    L = q_w (log q_w - log p_w) + q_l (log q_l - log p_l)

The gradient flows through both factors of each term. 0 at z = log((1 - eps) / eps). For badly ranked pairs (z << 0) q_w
and with it the gradient vanish: EXO cannot repair them, watch the metric vanishing. Sums over tokens.
"""

import math
from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import compared, log_ratios, log_sigmoid, with_anchor


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of EXO on pairs."""

    beta: float = setting(0.5, above=0.0)
    """beta_pi, 1/nats. Official code: 0.5; the paper's appendix and TRL: 0.1."""

    label_smoothing: float = setting(1e-3, above=0.0, below=0.5)
    """eps. TRL: 1e-3 (an optimum at z = 6.907). At 0 the loss would be infinite."""

    energies: bool = False
    """The official code's labels: energies (0, -10) without normalisation, log p_w = 0 and log p_l = -10, whatever eps
    is. The gradient of eps = 4.54e-5; the value differs by log(1 - eps)."""

    @property
    def log_labels(self) -> tuple[float, float]:
        """(log p_w, log p_l)."""
        eps = self.label_smoothing
        return (0.0, -10.0) if self.energies else (math.log1p(-eps), math.log(eps))


def exo_losses(chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
               beta: float, log_labels: tuple[float, float]) -> Tensor:
    """EXO-pref loss of each pair.

    Args:
        chosen_logps, rejected_logps: (G,) log pi of the two completions, sums over tokens, nats.
        ref_chosen_logps, ref_rejected_logps: (G,) the same under the frozen reference.
        beta: > 0. log_labels: (log p_w, log p_l), usually log(1 - eps) and log eps.

    Returns: (G,), >= 0 for labels that sum to 1; -ln 2 - (log p_w + log p_l) / 2 where policy and reference agree.
    """
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    logits = beta * (chosen - rejected)
    of_chosen = logits.sigmoid() * (log_sigmoid(logits) - log_labels[0])
    of_rejected = (-logits).sigmoid() * (log_sigmoid(-logits) - log_labels[1])
    return of_chosen + of_rejected


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,), the metrics of a comparison and vanishing (z < -10).

    Raises UserError for more than two completions.
    """
    pairs, four = with_anchor(batch, "exo")
    losses = exo_losses(*four, settings.beta, settings.log_labels)
    chosen, rejected = log_ratios(*four)
    vanishing = settings.beta * (chosen - rejected) < -10.0
    return compared(pairs.usable, losses, settings.beta * chosen, settings.beta * rejected, vanishing=vanishing)


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True, reference=True))
