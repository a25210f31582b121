"""Odds of a length-averaged likelihood, used by ORPO and ASFT: odds(y) = p / (1 - p) with p = exp(avg(y))."""

import math

from pipeline.objectives.contract import Tensor
from pipeline.objectives.shared.pairs import at_least_float32

LARGEST = -1e-6  # a completion of probability 1 has infinite odds


def log1mexp(values: Tensor) -> Tensor:
    """log(1 - e^v), elementwise, any shape; values above -1e-6 count as -1e-6 and give no gradient.

    Exact at both ends: near 0 by expm1, far below by log1p (Maechler 2012).
    """
    import torch

    values = at_least_float32(values).clamp(max=LARGEST)
    near = values > -math.log(2.0)
    # Each branch sees only what it is exact for: the other branch's infinite derivative would be a NaN gradient.
    by_expm1 = (-torch.where(near, values, -math.log(2.0)).expm1()).log()
    by_log1p = (-torch.where(near, -math.log(2.0), values).exp()).log1p()
    return torch.where(near, by_expm1, by_log1p)


def log_odds(averages: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(average log-prob per token), nats; same shape, clamped as in `log1mexp`."""
    return at_least_float32(averages).clamp(max=LARGEST) - log1mexp(averages)
