"""Binary Cringe (Adolphs et al. 2022; Xu et al. 2023, Eq. 5).

    L = L_CE(y+) + alpha L_Cr(y-)

for a pair y+ is the chosen and y- the rejected completion; a labelled single completion has the one term its label
says. Per-group sums, which the trainer divides by all completion tokens of the global batch (ParlAI's reduction).
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.cringe import needs as pair_needs
from pipeline.objectives.shared.cringe import per_token, token_terms
from pipeline.objectives.shared.pairs import at_least_float32, detached


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of Binary Cringe."""

    alpha: float = setting(0.005, low=0.0)
    """Weight of the contrastive loss. Paper: 0.005 in iteration 1, 0.01 in iteration 2."""

    k: int = setting(5, low=1)
    """How many of the largest logits the positive token is drawn from. Paper: 5."""


def needs(settings: Settings) -> Needs:
    """Pairs, lists and labelled completions, also mixed, and the largest logits of every token."""
    return pair_needs(settings) | Needs(lists=True)


def binary_cringe_losses(positive_logps: Tensor, negative_contrastive: Tensor, alpha: float) -> Tensor:
    """-log pi(y+) + alpha L_Cr(y-).

    Args:
        positive_logps: (G,) sum over the tokens of y+, nats; 0 where there is none.
        negative_contrastive: (G,) sum of contrastive losses over the tokens of y-; 0 where there is none.
        alpha: >= 0.

    Returns: (G,).
    """
    return alpha * at_least_float32(negative_contrastive) - at_least_float32(positive_logps)


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics ce_per_token, cringe_per_token. Labels are used for groups of one.

    Raises UserError for a k the vocabulary cannot give, ValueError without token inputs.
    """
    cross_entropy, contrastive = token_terms(batch, settings.k)
    losses = binary_cringe_losses(-cross_entropy, contrastive, settings.alpha)
    return losses, detached(**per_token(batch, cross_entropy, contrastive))


OBJECTIVE = Objective(Settings, loss, needs=needs, normalise="tokens")
