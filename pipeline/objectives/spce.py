"""Soft-preference cross-entropy (OSP): DPO with a probability per pair instead of a label.

    L = -p log s(beta h) - (1 - p) log s(-beta h),    p = P(y_w preferred to y_l), a constant

cDPO with eps = 1 - p of the pair's own; fitted at h = logit(p) / beta, so p must be calibrated. p = 1 is DPO, p = 1/2
pulls to h = 0. Sums over tokens.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import (
    at_least_float32,
    compared,
    log_ratios,
    log_sigmoid,
    rewards_of,
    with_anchor,
)
from pipeline.objectives.shared.scores import LABELS, scores_of, win_probabilities


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of SPCE."""

    beta: float = setting(0.1, above=0.0)
    """Strength of the pull to the reference, 1/nats. Not in the paper's text; 0.1 is DPO's."""

    labels: str = setting("rewards", choices=LABELS)
    """What the scores are: "rewards" R with p = s(R_w - R_l); "win_rates" against one baseline answer with
    p = s(logit p_w - logit p_l) (ranked pairing); "probability": the chosen completion's score is p itself."""

    clip: float = setting(1e-4, low=0.0, below=0.5)
    """p is kept in [clip, 1 - clip], so that the optimum stays finite."""


def needs(settings: Settings) -> Needs:
    """Probabilities are the score that selection rules with soft labels store."""
    stored = "win_rate" if settings.labels == "probability" else None
    return Needs(reference=True, pairs=True, scores=True, score=stored)


def spce_losses(chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
                probabilities: Tensor, beta: float, clip: float = 1e-4) -> Tensor:
    """SPCE loss of each pair.

    Args:
        chosen_logps, rejected_logps: (G,) log pi of the two completions, sums over tokens, nats.
        ref_chosen_logps, ref_rejected_logps: (G,) the same under the frozen reference.
        probabilities: (G,) p in [0, 1]; no gradient goes into it.
        beta: > 0. clip: in [0, 1/2).

    Returns: (G,), each > 0; ln 2 where policy and reference agree.
    """
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    logits = beta * (chosen - rejected)
    p = at_least_float32(probabilities.detach()).clamp(clip, 1.0 - clip)
    return -p * log_sigmoid(logits) - (1.0 - p) * log_sigmoid(-logits)


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,), the metrics of a comparison and label, the p used.

    Raises UserError for more than two completions and for scores outside what `labels` says they are.
    """
    pairs, four = with_anchor(batch, "spce")
    p = win_probabilities(*pairs.sides(scores_of(batch, "spce")), settings.labels)
    losses = spce_losses(*four, p, settings.beta, settings.clip)
    return compared(pairs.usable, losses, *rewards_of(four, settings.beta), label=p)


OBJECTIVE = Objective(Settings, loss, needs=needs)
