"""Unlikelihood (Welleck et al. 2020): likelihood of the wanted, unlikelihood of the unwanted tokens.

    L = L_CE(y+) + alpha sum_t -log(1 - pi(y-_t | x, y-_<t))

for a pair y+ is the chosen and y- the rejected completion; a labelled single completion has the one term its label
says. Per-group sums, which the trainer divides by all completion tokens of the global batch: the token mean.
"""

import math
from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.labelled import signs
from pipeline.objectives.shared.pairs import at_least_float32, detached, masked
from pipeline.objectives.shared.tokenwise import completion_sums, tokens_of


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of unlikelihood training."""

    alpha: float = setting(1.0, low=0.0)
    """Weight of the unlikelihood term. Paper: 1."""

    floor: float = setting(1e-20, above=0.0, below=1.0)
    """1 - p is held above this; a token whose probability rounds to 1 then has no gradient. ParlAI: 1e-20."""


def unlikelihood_losses(token_logps: Tensor, floor: float = 1e-20) -> Tensor:
    """-log(1 - p) of each token.

    Args:
        token_logps: log p, nats, <= 0, any shape. floor: lower bound of 1 - p, in (0, 1).

    Returns: the same shape, >= 0 and <= -log(floor), with gradient p / (1 - p).
    """
    import torch

    logps = at_least_float32(token_logps)
    likely = logps > -math.log(2.0)  # below, 1 - p rounds to 1 and expm1's gradient to 0; above, log1p(-p) loses 1 - p
    high = (-torch.where(likely, logps, -1.0).expm1()).clamp(min=floor).log()
    low = (-torch.where(likely, -1.0, logps).exp()).log1p().clamp(min=math.log(floor))
    return -torch.where(likely, high, low)


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics ce_per_token, unlikelihood_per_token. Labels are used for groups of one.

    Raises ValueError without token inputs.
    """
    tokens = tokens_of(batch, "unlikelihood")
    positive, negative = signs(batch)
    cross_entropy = -masked(batch.logps, positive).sum(dim=1)
    per_token = unlikelihood_losses(tokens.logps, settings.floor)
    unlikelihood = masked(completion_sums(per_token, tokens, batch.present), negative).sum(dim=1)
    wanted, unwanted = ((batch.lengths * keep).sum(dim=1).clamp(min=1) for keep in (positive, negative))
    return cross_entropy + settings.alpha * unlikelihood, detached(
        ce_per_token=cross_entropy / wanted, unlikelihood_per_token=unlikelihood / unwanted)


# Labelled completions, pairs and lists, also mixed.
OBJECTIVE = Objective(Settings, loss, needs=Needs(labels=True, token_logps=True), normalise="tokens")
