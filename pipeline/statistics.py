"""Win rates and their uncertainty. Pure functions of plain numbers; the standard library is enough.

Every comparison is a number in [0, 1]: 1 a win of the policy, 0.5 a tie, 0 a loss; with several samples per prompt a
prompt's outcome is their mean. Prompts, not samples, are the independent units, so n is the number of prompts.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import NormalDist, fmean


def outcome(ours: float, theirs: float, margin: float = 0.0) -> float:
    """1 where `ours` exceeds `theirs` by more than `margin` >= 0, 0 where it falls short by more, else 0.5 (a tie)."""
    if ours - theirs > margin:
        return 1.0
    return 0.0 if theirs - ours > margin else 0.5


def win_rate(wins: int, ties: int, losses: int) -> float:
    """(W + T/2) / (W + T + L) in [0, 1]: ties count half, as in AlpacaEval (Li et al. 2023).

    Raises ValueError where there is no comparison at all.
    """
    total = wins + ties + losses
    if total == 0:
        raise ValueError("a win rate of no comparisons is undefined")
    return (wins + ties / 2) / total


def wilson(share: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson (1927) score interval of a mean `share` in [0, 1] of n independent outcomes in [0, 1].

    Never leaves [0, 1] and stays honest at 0 and 1, where a bootstrap shows no spread at all. With ties or several
    samples per prompt the outcomes vary less than wins and losses would, so it is then conservative.

    Raises ValueError for n < 1 or a share outside [0, 1].
    """
    if n < 1 or not 0 <= share <= 1:
        raise ValueError(f"expected a share in [0, 1] of n >= 1 outcomes, got {share} of {n}")
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(
    values: Sequence[float], seed: int, resamples: int = 2000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979) of the mean of `values`, drawn with `seed`.

    One value per independent unit (prompt). The same values in the same order and the same seed give the same bytes.

    Raises ValueError for no values.
    """
    if not values:
        raise ValueError("a bootstrap of no values is undefined")
    rng = random.Random(seed)
    means = sorted(math.fsum(rng.choices(values, k=len(values))) / len(values) for _ in range(resamples))
    tail = (1 - confidence) / 2
    return quantile(means, tail), quantile(means, 1 - tail)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The `share` quantile, 0 to 1, of an ordered sequence, linear between neighbours (Hyndman & Fan 1996, type 7)."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def mean(values: Sequence[float]) -> float:
    """The mean; ValueError for no values."""
    if not values:
        raise ValueError("a mean of no values is undefined")
    return fmean(values)
