"""Negative preference optimization (Zhang et al. 2024): unlearning, gradient ascent that fades out.

    unwanted (forget):  L = -(2 / beta) log s(-beta (log pi - log ref))
    wanted (retain):    L = retain_weight (-log pi), 0 for plain NPO, 1 for NPO+GD

dL/dlog pi = 2 s(beta log-ratio) on what is to be forgotten: 1 at the start, as in gradient ascent (beta -> 0), and 0
once the policy is far below the reference, which is the model before unlearning. Sums over tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.build import setting
from pipeline.objectives.auxiliary import sft_losses
from pipeline.objectives.labelled import labelled, labelled_metrics
from pipeline.objectives.pairs import SFT
from pipeline.objectives.tensors import at_least_float32, log_sigmoid, masked
from pipeline.records import LossInputs

if TYPE_CHECKING:
    from torch import Tensor

NEEDS = frozenset({"labels", "reference"})
NORMALISE = "groups"


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of NPO."""

    beta: float = setting(0.1, above=0.0)
    """Inverse temperature, 1/nats. Paper: 0.1. Towards 0 it is gradient ascent."""

    retain_weight: float = setting(0.0, low=0.0)
    """Weight of the likelihood of wanted completions, the retain set. NPO+GD: 1."""

    sft_normalise: str = setting("mean", choices=SFT)
    """How that likelihood is normalised: over the completion's tokens (mean), not at all (sum), or so that it averages
    to the mean over all tokens of completions 0 (batch)."""


def npo_losses(logps: Tensor, ref_logps: Tensor, beta: float) -> Tensor:
    """NPO loss of each undesired completion.

    Args:
        logps, ref_logps: any one shape, log pi and log ref, sums over tokens, nats.
        beta: > 0.

    Returns: the same shape, each > 0; (2 / beta) ln 2 where policy and reference agree.
    """
    log_ratios = at_least_float32(logps) - at_least_float32(ref_logps)
    return -(2.0 / beta) * log_sigmoid(-beta * log_ratios)


def loss(batch: LossInputs, settings: Settings) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses (G,), sums over the group's completions, and the metrics of a comparison."""
    import torch

    examples = labelled(batch, "npo")
    forget = masked(npo_losses(examples.ratios, torch.zeros_like(examples.ratios), settings.beta), examples.unwanted)
    losses = forget.sum(dim=1)
    if settings.retain_weight > 0.0:
        kept = examples.wanted[:, 0]  # only completion 0 is ever wanted
        logps = masked(batch.logps[:, 0], kept)
        nll = sft_losses(logps, batch.lengths[:, 0], settings.sft_normalise, batch.mean_chosen_length)
        losses = losses + settings.retain_weight * torch.where(kept, nll, 0.0)
    return losses, labelled_metrics(examples, settings.beta)
