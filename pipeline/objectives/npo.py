"""Negative preference optimization (Zhang et al. 2024): unlearning, gradient ascent that fades out.

    unwanted (forget):  L = -(2 / beta) log s(-beta (log pi - log ref))
    wanted (retain):    L = retain_weight (-log pi)                  NPO+GD
                    or  L = retain_weight sum_t KL(ref || pi)        NPO+KL, over the vocabulary at every token

dL/dlog pi = 2 s(beta log-ratio) on what is to be forgotten: 1 at the start, as in gradient ascent (beta -> 0), and 0
once the policy is far below the reference, which is the model before unlearning. Sums over tokens.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.auxiliary import SFT, sft_losses
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.labelled import Labelled, labelled, labelled_metrics
from pipeline.objectives.shared.pairs import at_least_float32, log_sigmoid, masked, required
from pipeline.objectives.shared.tokenwise import completion_sums, tokens_of


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of NPO."""

    beta: float = setting(0.1, above=0.0)
    """Inverse temperature, 1/nats. Paper: 0.1. Towards 0 it is gradient ascent."""

    retain_weight: float = setting(0.0, low=0.0)
    """Weight of the term on wanted completions, the retain set. 0: plain NPO; NPO+GD and NPO+KL: 1."""

    retain: str = setting("gd", choices=("gd", "kl"))
    """That term: gd, their likelihood; kl, the divergence from the reference, which holds the reference model."""

    sft_normalise: str = setting("batch", choices=SFT)
    """How that term is normalised: so that it averages to the mean over all tokens of completions 0 (batch, as the
    authors' code), over the completion's tokens (mean), or not at all (sum)."""


def needs(settings: Settings) -> Needs:
    """The divergence needs the reference model."""
    kl = settings.retain_weight > 0.0 and settings.retain == "kl"
    return Needs(labels=True, reference=True, divergences=kl)


def npo_losses(logps: Tensor, ref_logps: Tensor, beta: float) -> Tensor:
    """NPO loss of each undesired completion.

    Args:
        logps, ref_logps: any one shape, log pi and log ref, sums over tokens, nats.
        beta: > 0.

    Returns: the same shape, each > 0; (2 / beta) ln 2 where policy and reference agree.
    """
    log_ratios = at_least_float32(logps) - at_least_float32(ref_logps)
    return -(2.0 / beta) * log_sigmoid(-beta * log_ratios)


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,), sums over the group's completions, and the metrics of a comparison."""
    examples = labelled(batch, "npo")
    ratios = examples.ratios
    forget = masked(npo_losses(ratios, ratios.new_zeros(ratios.shape), settings.beta), examples.unwanted)
    losses = forget.sum(dim=1)
    if settings.retain_weight > 0.0:
        losses = losses + settings.retain_weight * _retain(batch, examples, settings)
    return losses, labelled_metrics(examples, settings.beta)


def _retain(batch: LossInputs, examples: Labelled, settings: Settings) -> Tensor:
    """(G,) the term on the wanted completion, which can only be completion 0."""
    kept = examples.wanted[:, 0]
    if settings.retain == "gd":
        logps = masked(batch.logps[:, 0], kept)
    else:
        tokens = tokens_of(batch, "npo")
        divergences = required(tokens.divergences, "tokens.divergences", "npo")
        logps = -completion_sums(divergences, tokens, batch.present)[:, 0]
    terms = sft_losses(logps, batch.lengths[:, 0], settings.sft_normalise, batch.mean_chosen_length)
    return masked(terms, kept)


OBJECTIVE = Objective(Settings, loss, needs=needs)
