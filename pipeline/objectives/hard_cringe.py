"""Pairwise Cringe with the hard margin (Xu et al. 2023, Sec. 3.2.1): the gate is a step.

    M = log pi(y_w|x) - log pi(y_l|x)
    g = 1[M <= b]                                    inclusive, no gradient through g
    L = g (L_CE(y_w) + alpha L_Cr(y_l))

A pair is learned like Binary Cringe until its margin passes b. A group of one always is (g = 1).
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Objective, Tensor
from pipeline.objectives.shared.cringe import REDUCTIONS, margins, needs, normalise, per_token, reduced, token_terms
from pipeline.objectives.shared.pairs import at_least_float32, detached, paired


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of hard-margin Cringe. The defaults are the paper's iteration 1 on human preferences."""

    alpha: float = setting(0.005, low=0.0)
    """Weight of the contrastive loss. Paper: 0.005 in iteration 1, 0.01 in iteration 2."""

    b: float = setting(-10.0)
    """The margin up to which a pair is learned, nats. Paper: -10 in iteration 1, 10 in iteration 2."""

    k: int = setting(5, low=1)
    """How many of the largest logits the positive token is drawn from. Paper: 5."""

    margin: str = setting("sum", choices=("sum", "avg"))
    """Log-probs of M summed over tokens (Eq. 6) or averaged (the printed listing; there b = -10 never fires)."""

    reduction: str = setting("tokens", choices=REDUCTIONS)
    """tokens: sums over each pair, divided by all completion tokens of the global batch (ParlAI's); sum: Eq. 8 as
    printed, the mean over pairs; mean: of each completion's own token mean. The paper does not say which."""


def hard_gates(margin: Tensor, b: float) -> Tensor:
    """g = 1[M <= b]. margin: (G,) nats. Returns (G,) of 0.0 and 1.0 without gradient."""
    margin = at_least_float32(margin.detach())
    return (margin <= b).to(margin.dtype)


def hard_cringe_losses(chosen_logps: Tensor, contrastive: Tensor, margin: Tensor, alpha: float, b: float) -> Tensor:
    """1[M <= b] (-log pi(y_w) + alpha L_Cr(y_l)) for each pair.

    Args:
        chosen_logps: (G,) sum over the tokens of y_w, nats.
        contrastive: (G,) sum of contrastive losses over the tokens of y_l.
        margin: (G,) M, nats.
        alpha: >= 0. b: nats.

    Returns: (G,), each >= 0.
    """
    return hard_gates(margin, b) * (alpha * at_least_float32(contrastive) - at_least_float32(chosen_logps))


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and metrics: margin (nats), accuracy (margin > 0), gate, the token terms.

    Raises UserError for groups of more than two or a k the vocabulary cannot give, ValueError without token inputs.
    """
    usable = paired(batch, "hard_cringe")
    cross_entropy, contrastive = token_terms(batch, settings.k)
    margin = margins(batch, usable, settings.margin)
    terms = reduced(batch, cross_entropy, contrastive, settings.reduction)
    gated = hard_cringe_losses(-terms[0], terms[1], margin, settings.alpha, settings.b)
    losses = gated.where(usable, terms[0] + settings.alpha * terms[1])
    metrics = detached(margin=margin, accuracy=margin > 0,
                       gate=hard_gates(margin, settings.b).where(usable, 1.0),
                       **per_token(batch, cross_entropy, contrastive))
    return losses, metrics


OBJECTIVE = Objective(Settings, loss, needs, normalise)
