"""SRPO, self-improving robust preference optimisation (Choi et al. 2024): answers and their revisions by one network.

    R(y|z) = beta (log pi(y|z,x) - log ref(y|z,x)),  z a draft shown in the prompt;  R(y) without a draft
    L_imp  = 1/2 [ (R(y_w|y_l) - R(y_l|y_l) - (p - 1/2))^2 + (R(y_l|y_w) - R(y_w|y_w) + (p - 1/2))^2 ]
    L_gen  = (R(y_w) - R(y_l) - R(y_w|y_w) + R(y_l|y_l))^2
    L      = (1 - alpha) L_imp + alpha L_gen,        p = P(y_w preferred to y_l) = 1 for a label

Derived from the min-max objective of the paper: at its optimum R(y2|y1) - R(y1|y1) = P(y2 > y1) - 1/2 and
R(y1) - R(y2) = R(y1|y1) - R(y2|y2). How the authors weigh the two parts is not known here. Sums over tokens.

Columns of a group, each with its own prompt (Completion.prompt_ids): y_w|x, y_l|x, y_w|draft y_l, y_l|draft y_l,
y_l|draft y_w, y_w|draft y_w.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.lists import laid_out
from pipeline.objectives.shared.pairs import at_least_float32, column, compared, reference_of

COLUMNS = ("y_w|x", "y_l|x", "y_w|draft y_l", "y_l|draft y_l", "y_l|draft y_w", "y_w|draft y_w")


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of SRPO. Both values are placeholders: no source was available."""

    beta: float = setting(0.01, above=0.0)
    """Strength of the pull to the reference, 1/nats."""

    alpha: float = setting(0.5, low=0.0, high=1.0)
    """Share of the part that ranks first answers; the rest ranks revisions."""


def srpo_losses(log_ratios: Tensor, beta: float, alpha: float, preference: Tensor | float = 1.0) -> Tensor:
    """SRPO loss of each pair.

    Args:
        log_ratios: (G, 6) log pi - log ref of the six conditionals in the order of COLUMNS, nats.
        beta: > 0, 1/nats. alpha: in [0, 1].
        preference: P(y_w preferred to y_l), a number or (G,); 1 for a label.

    Returns: (G,), >= 0; (1 - alpha) (p - 1/2)^2 where policy and reference agree.
    """
    first_w, first_l, w_from_l, l_from_l, l_from_w, w_from_w = (beta * at_least_float32(log_ratios)).unbind(dim=1)
    gap = preference - 0.5
    improved = (w_from_l - l_from_l - gap).square() + (l_from_w - w_from_w + gap).square()
    generated = (first_w - first_l - w_from_w + l_from_l).square()
    return (1.0 - alpha) * 0.5 * improved + alpha * generated


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,), the metrics of a comparison of the two first answers, and improvement: R(y_w|y_l) - R(y_l|y_l).

    Raises UserError for groups of another layout, ValueError without a reference.
    """
    import torch

    reference = reference_of(batch, "srpo")
    usable = laid_out(batch.present, "srpo", COLUMNS)
    six = [column(batch.logps, i, usable) - column(reference, i, usable) for i in range(len(COLUMNS))]
    losses = srpo_losses(torch.stack(six, dim=1), settings.beta, settings.alpha)
    improvement = settings.beta * (six[2] - six[3])
    return compared(usable, losses, settings.beta * six[0], settings.beta * six[1], improvement=improvement)


OBJECTIVE = Objective(Settings, loss, needs=Needs(lists=True, reference=True, layout="drafts"))
