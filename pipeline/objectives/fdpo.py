"""f-DPO (Wang et al. 2023): DPO under other divergences from the reference.

    L = -log s( beta (f'(u_w) - f'(u_l)) ),   u = pi / ref = exp(log-ratio)

    reverse_kl   f' = log u                       DPO
    forward_kl   f' = 1 - 1/u
    js           f' = log(2u / (1 + u)) = ln 2 + log s(log u)
    alpha        f' = (1 - u^-alpha) / alpha      0 < alpha < 1; towards 0 reverse, towards 1 forward KL

forward_kl and alpha exponentiate minus the log-ratio, which overflows once a completion lies 88 nats below the
reference: their exponent is clamped, and a clamped completion gives no gradient. Sums over tokens.
"""

import math
from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import at_least_float32, compared, log_ratios, log_sigmoid, with_anchor


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of f-DPO."""

    beta: float = setting(0.1, above=0.0)
    """Strength of the pull to the reference. Paper: 0.1."""

    divergence: str = setting("js", choices=("reverse_kl", "forward_kl", "js", "alpha"))
    """Which divergence. js is bounded where a completion became likely and linear where it became unlikely."""

    alpha: float = setting(0.5, above=0.0, below=1.0)
    """Of the alpha divergence. TRL's f_alpha_divergence_coef is 1 - alpha; both have 0.5 as default."""

    clamp: float = setting(80.0, above=0.0, high=80.0)
    """Largest exponent, nats. TRL: 80, for alpha only. The gradient reaches exp(clamp)."""

    @property
    def rate(self) -> float:
        """What the log-ratio is multiplied by in the exponent: 0 where there is none."""
        return {"forward_kl": 1.0, "alpha": self.alpha}.get(self.divergence, 0.0)


def f_scores(log_ratios: Tensor, divergence: str, alpha: float = 0.5, clamp: float = 80.0) -> Tensor:
    """f'(u) at u = exp(log-ratio), elementwise.

    Args:
        log_ratios: any shape, nats. divergence: "reverse_kl", "forward_kl", "js" or "alpha".
        alpha: in (0, 1), for "alpha". clamp: largest exponent, nats.

    Returns: the same shape; 0 where policy and reference agree.
    """
    values = at_least_float32(log_ratios)
    if divergence == "reverse_kl":
        return values
    if divergence == "js":
        return math.log(2.0) + log_sigmoid(values)
    if divergence not in ("forward_kl", "alpha"):
        raise ValueError(f"divergence: {divergence!r}, expected reverse_kl, forward_kl, js or alpha")
    rate = alpha if divergence == "alpha" else 1.0
    return -(-rate * values).clamp(max=clamp).expm1() / rate


def fdpo_losses(chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
                beta: float, divergence: str, alpha: float = 0.5, clamp: float = 80.0) -> Tensor:
    """f-DPO loss of each pair.

    Args:
        chosen_logps, rejected_logps: (G,) log pi of the two completions, sums over tokens, nats.
        ref_chosen_logps, ref_rejected_logps: (G,) the same under the frozen reference.
        beta: > 0. divergence, alpha, clamp: see `f_scores`.

    Returns: (G,), each >= 0; ln 2 where policy and reference agree.
    """
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    difference = f_scores(chosen, divergence, alpha, clamp) - f_scores(rejected, divergence, alpha, clamp)
    return -log_sigmoid(beta * difference)


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,), the metrics of a comparison (rewards are beta f') and clamped, the pair's number of clamped sides.

    Raises UserError for more than two completions.
    """
    pairs, four = with_anchor(batch, "fdpo")
    how = settings.divergence, settings.alpha, settings.clamp
    losses = fdpo_losses(*four, settings.beta, *how)
    chosen, rejected = log_ratios(*four)
    clamped = (-settings.rate * chosen > settings.clamp).long() + (-settings.rate * rejected > settings.clamp).long()
    rewards = (settings.beta * f_scores(side, *how) for side in (chosen, rejected))
    return compared(pairs.usable, losses, *rewards, clamped=clamped)


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True, reference=True))
