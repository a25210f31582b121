"""EGPO, extragradient preference optimisation (Zhou et al. 2025): Nash learning by two online IPO steps.

    L(theta; mu)  = (lr(y) - lr(y') - (P(y > y'') - P(y' > y''))/beta)^2,   y, y' ~ rho,  y'' ~ mu
    theta_half    = theta_t - lr grad L(theta_t; pi_t)
    theta_{t+1}   = theta_t - lr grad L(theta_t; pi_half)

Both gradients are taken at theta_t; only the opponents y'' change. This module is L; columns, preferences and the pair
without opponents are those of online_ipo, version 1.

The two half steps are two training stages of recipe egpo, each over as many prompts as one EGPO step is to see: (1)
sample opponents from theta_t and train from theta_t, which gives theta_half; (2) sample opponents for the same y, y'
from theta_half and train from *theta_t* again, with its optimizer state, which gives theta_{t+1}. With one optimizer
step per stage this is the algorithm as written, with more its mini-batch form. A loop of plain iterations, each from
the model before it, is online IPO instead. In the tabular case with uniform rho a step is pi_{t+1} ~ pi_t^{1 - c beta}
ref^{c beta} exp(c P(. > pi_half)), c = 4 lr/(beta N) over N answers.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective
from pipeline.objectives.online_ipo import against_opponents


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of EGPO."""

    beta: float = setting(0.1, above=0.0)
    """Strength of the pull to the reference, 1/nats (per token with log_ratio=avg). Authors' code: 0.1."""

    log_ratio: str = setting("avg", choices=("sum", "avg"))
    """lr averaged over tokens, as the authors' language-model code does, or summed, as in the paper's equations."""


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) of one half step (see `online_ipo.online_ipo_losses`) and the metrics of a comparison and target.

    Raises ValueError without a reference or scores.
    """
    return against_opponents(batch, "egpo", settings.beta, settings.log_ratio)


OBJECTIVE = Objective(Settings, loss, needs=Needs(lists=True, reference=True, scores=True, takes=("drawn",)))
