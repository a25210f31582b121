"""Pairwise Cringe with the soft margin (Xu et al. 2023, Eqs. 6-8), the objective of PCO.

    M = log pi(y_w|x) - log pi(y_l|x)
    g = s((b - M) / tau)                             the gradient flows through g
    L = g (L_CE(y_w) + alpha L_Cr(y_l))

No reference model. Once a pair is well separated (M far above b) its gate closes and it costs nothing more. A group
of one is Binary Cringe with an open gate (g = 1).
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Objective, Tensor
from pipeline.objectives.shared.cringe import REDUCTIONS, margins, needs, normalise, per_token, reduced, token_terms
from pipeline.objectives.shared.pairs import at_least_float32, detached, paired


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of Pairwise Cringe. The defaults are the paper's iteration 1 on simulated preferences."""

    alpha: float = setting(0.005, low=0.0)
    """Weight of the contrastive loss. Paper: 0.005 then 0.01 (simulated preferences), 0.01 then 0.005 (human)."""

    b: float = setting(0.0)
    """The margin at which the gate is half open, nats. Paper: 0 then -10 (simulated), -10 in both (human)."""

    tau: float = setting(10.0, above=0.0)
    """Temperature of the gate, nats. Paper: 10 in iteration 1, 1 in iteration 2."""

    k: int = setting(5, low=1)
    """How many of the largest logits the positive token is drawn from. Paper: 5."""

    margin: str = setting("sum", choices=("sum", "avg"))
    """Log-probs of M summed over tokens (Eq. 6) or averaged (the printed listing). b = -10 has a meaning only for sums:
    averaged margins stay within a few nats."""

    reduction: str = setting("tokens", choices=REDUCTIONS)
    """tokens: sums over each pair, divided by all completion tokens of the global batch (ParlAI's); sum: Eq. 8 as
    printed, the mean over pairs; mean: of each completion's own token mean. The paper does not say which."""


def soft_gates(margin: Tensor, b: float, tau: float) -> Tensor:
    """g = s((b - M) / tau). margin: (G,) nats; tau > 0. Returns (G,) in [0, 1], with gradient -g (1 - g) / tau."""
    return ((b - at_least_float32(margin)) / tau).sigmoid()


def pairwise_cringe_losses(chosen_logps: Tensor, contrastive: Tensor, margin: Tensor, alpha: float, b: float,
                           tau: float) -> Tensor:
    """g (-log pi(y_w) + alpha L_Cr(y_l)) for each pair.

    Args:
        chosen_logps: (G,) sum over the tokens of y_w, nats.
        contrastive: (G,) sum of contrastive losses over the tokens of y_l.
        margin: (G,) M, not detached: the gate is part of what is learned.
        alpha: >= 0. b: nats. tau: > 0, nats.

    Returns: (G,), each >= 0.
    """
    terms = alpha * at_least_float32(contrastive) - at_least_float32(chosen_logps)
    return soft_gates(margin, b, tau) * terms


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and metrics: margin (nats), accuracy (margin > 0), gate, gate_closed (g < 0.01), the token terms.

    Raises UserError for groups of more than two or a k the vocabulary cannot give, ValueError without token inputs.
    """
    usable = paired(batch, "pairwise_cringe")
    cross_entropy, contrastive = token_terms(batch, settings.k)
    margin = margins(batch, usable, settings.margin)
    terms = reduced(batch, cross_entropy, contrastive, settings.reduction)
    gated = pairwise_cringe_losses(-terms[0], terms[1], margin, settings.alpha, settings.b, settings.tau)
    losses = gated.where(usable, terms[0] + settings.alpha * terms[1])
    gate = soft_gates(margin, settings.b, settings.tau).where(usable, 1.0)
    metrics = detached(margin=margin, accuracy=margin > 0, gate=gate, gate_closed=gate < 0.01,
                       **per_token(batch, cross_entropy, contrastive))
    return losses, metrics


OBJECTIVE = Objective(Settings, loss, needs, normalise)
