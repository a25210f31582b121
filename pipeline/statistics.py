"""Win rates and their uncertainty. Pure functions of plain numbers.

Every comparison is a number in [0, 1]: 1 a win of the policy, 0.5 a tie, 0 a loss; with several samples per prompt a
prompt's outcome is their mean. Prompts, not samples, are the independent units, so n is the number of prompts.
"""

import itertools
import math
import random
from collections.abc import Hashable, Sequence
from statistics import NormalDist, fmean

import numpy as np


def outcome(ours: float, theirs: float, margin: float = 0.0) -> float:
    """1 where `ours` exceeds `theirs` by more than `margin` >= 0, 0 where it falls short by more, else 0.5 (a tie)."""
    if ours - theirs > margin:
        return 1.0
    return 0.0 if theirs - ours > margin else 0.5


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


def bootstrap(values: Sequence[float], seed: int, resamples: int = 2000,
              confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979) of the mean of `values`, drawn with `seed`.

    One value per independent unit (prompt). The same values in the same order and the same seed give the same bytes.

    Raises ValueError for no values.
    """
    if not values:
        raise ValueError("a bootstrap of no values is undefined")
    rng, data = np.random.default_rng(seed), np.asarray(values, float)
    return percentiles([data[rng.integers(len(data), size=len(data))].mean() for _ in range(resamples)], confidence)


def percentiles(draws: Sequence[float], confidence: float) -> tuple[float, float]:
    """The interval that holds the middle `confidence` of draws, linear between neighbours (Hyndman & Fan 1996, 7)."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    return low, high


def mean(values: Sequence[float]) -> float:
    """The mean; ValueError for no values."""
    if not values:
        raise ValueError("a mean of no values is undefined")
    return fmean(values)


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean, sd / sqrt(n) with n - 1 in the variance; 0 for a single value."""
    return spread(values)[1] / math.sqrt(len(values))


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1), one number per seed say; 0 for a single value. ValueError: none."""
    middle = mean(values)
    if len(values) == 1:
        return middle, 0.0
    return middle, math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (len(values) - 1))


def sign_flip(differences: Sequence[float], seed: int, resamples: int = 10_000) -> float:
    """Two-sided p-value of "the two policies are alike" from paired differences, one per prompt.

    If they are, every difference may as well have the other sign (Fisher's permutation test): the p-value is the share
    of sign patterns whose mean is at least as far from 0. Up to 2^12 patterns are all tried, else `resamples` are drawn
    and the observed one is counted among them, so p is never 0. Raises ValueError for no differences.
    """
    if not differences:
        raise ValueError("a test of no differences is undefined")
    moved = [abs(d) for d in differences if d != 0]
    observed = abs(math.fsum(differences)) - 1e-12  # rounding must not part equal sums
    if len(moved) <= 12:
        patterns = itertools.product((-1, 1), repeat=len(moved))
        hits = sum(abs(math.fsum(s * d for s, d in zip(signs, moved, strict=True))) >= observed for signs in patterns)
        return hits / 2 ** len(moved)
    rng = random.Random(seed)
    hits = 0
    for _ in range(resamples):
        bits = rng.getrandbits(len(moved))
        hits += abs(math.fsum(d if bits >> i & 1 else -d for i, d in enumerate(moved))) >= observed
    return (hits + 1) / (resamples + 1)


def edit_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Levenshtein distance: fewest insertions, deletions and substitutions that turn `a` into `b`.

    Column by column of the usual table, its differences as the bits of two numbers (Myers 1999, Hyyrö 2003).
    """
    if not a:
        return len(b)
    at: dict[Hashable, int] = {}
    for i, item in enumerate(a):
        at[item] = at.get(item, 0) | 1 << i
    full, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    up, down, distance = full, 0, len(a)
    for item in b:
        same = at.get(item, 0)
        diagonal = (((same & up) + up) ^ up) | same | down
        right, left = down | (full & ~(diagonal | up)), up & diagonal
        distance += bool(right & last) - bool(left & last)
        right, left = right << 1 | 1, left << 1
        up, down = (left | ~(diagonal | right)) & full, right & diagonal & full
    return distance


def normalised_edit_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """Edit distance over the longer one's length, in [0, 1] (Pal et al. 2024, App. D); 0 for two empty sequences."""
    return edit_distance(a, b) / max(len(a), len(b), 1)
