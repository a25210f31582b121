"""Win rates and intervals, against numbers worked by hand."""

import math
import random

import pytest

from pipeline import statistics
from pipeline.statistics import (
    bootstrap,
    mean,
    outcome,
    percentiles,
    sign_flip,
    spread,
    standard_error,
    wilson,
)


def test_outcome_is_a_tie_within_the_margin():
    """|1.0 - 0.75| = 0.25 is within a margin of 0.25 and beyond one of 0.2."""
    assert outcome(1.0, 0.75) == 1.0
    assert outcome(1.0, 0.75, margin=0.25) == 0.5
    assert outcome(0.75, 1.0, margin=0.2) == 0.0
    assert outcome(1.0, 1.0) == 0.5


def test_wilson_by_hand():
    """8 of 10 at 95 %: z = 1.959964, z^2 = 3.841459.

    centre = (0.8 + z^2/20) / (1 + z^2/10) = 0.992073 / 1.384146 = 0.716740
    half   = z * sqrt(0.8*0.2/10 + z^2/400) / 1.384146 = 1.959964 * 0.160012 / 1.384146 = 0.226578
    """
    low, high = wilson(0.8, 10)
    assert low == pytest.approx(0.490162, abs=1e-5)
    assert high == pytest.approx(0.943318, abs=1e-5)


def test_wilson_stays_honest_at_the_ends():
    """All 10 won: the lower end is n / (n + z^2) = 10 / 13.841459, not 1."""
    low, high = wilson(1.0, 10)
    assert low == pytest.approx(10 / 13.841459, abs=1e-6)
    assert high == 1.0
    assert wilson(0.0, 10)[0] == 0.0
    with pytest.raises(ValueError, match="n >= 1"):
        wilson(0.5, 0)
    with pytest.raises(ValueError, match=r"share in \[0, 1\]"):
        wilson(1.2, 10)


def test_wilson_covers_the_truth_as_often_as_it_says():
    """Sum over every outcome of 40 fair coin tosses, weighted by its probability: about 95 %."""
    covered = sum(math.comb(40, k) / 2**40 for k in range(41) if wilson(k / 40, 40)[0] <= 0.5 <= wilson(k / 40, 40)[1])
    assert 0.93 < covered < 0.98


def test_percentiles_are_linear_between_neighbours():
    """Of 0, 10, 20, 30 the 0.25 and 0.75 quantiles, the middle half, are at places 0.75 and 2.25: 7.5 and 22.5."""
    assert percentiles([30.0, 0.0, 20.0, 10.0], 0.5) == pytest.approx((7.5, 22.5), abs=1e-12)
    assert percentiles([4.0], 0.95) == (4.0, 4.0)


def test_bootstrap_is_near_the_normal_interval_for_many_values():
    """1,000 values, half 0 and half 1: 0.5 -+ 1.96 * 0.5 / sqrt(1000) = 0.5 -+ 0.031."""
    low, high = bootstrap([0.0, 1.0] * 500, seed=1)
    assert low == pytest.approx(0.469, abs=0.004)
    assert high == pytest.approx(0.531, abs=0.004)


def test_bootstrap_of_two_values_by_hand():
    """The mean of two draws of 0 and 1 is 0, 0.5 or 1 with chances 1/4, 1/2, 1/4: the middle 40 % are all 0.5, the
    middle 60 % reach from 0 to 1."""
    assert bootstrap([0.0, 1.0], seed=3, confidence=0.4) == (0.5, 0.5)
    assert bootstrap([0.0, 1.0], seed=3, confidence=0.6) == (0.0, 1.0)


def test_bootstrap_repeats_with_its_seed_only():
    values = [0.0, 0.25, 0.5, 0.9, 1.0, 1.0, 0.3]
    assert bootstrap(values, seed=7) == bootstrap(values, seed=7)
    assert bootstrap(values, seed=7) != bootstrap(values, seed=8)


def test_bootstrap_of_equal_values_has_no_width_and_of_none_no_meaning():
    assert bootstrap([0.5] * 9, seed=0) == (0.5, 0.5)
    with pytest.raises(ValueError, match="no values"):
        bootstrap([], seed=0)
    with pytest.raises(ValueError, match="no values"):
        mean([])


def test_sign_flip_by_hand():
    """Differences 3, 2, 1: of the 8 sign patterns only +++ and --- reach a sum of 6: p = 2/8. Zeros tell nothing."""
    assert sign_flip([3.0, 2.0, 1.0], seed=0) == 0.25
    assert sign_flip([3.0, 0.0, 2.0, 0.0, 1.0], seed=0) == 0.25
    assert sign_flip([3.0, -2.0, 1.0], seed=0) == 0.75  # sums of +-6, +-4 twice and +-2: six of eight reach 2
    assert sign_flip([0.0, 0.0], seed=0) == 1.0
    with pytest.raises(ValueError, match="no differences"):
        sign_flip([], seed=0)


def test_sign_flip_of_many_is_near_the_binomial():
    """30 of 40 prompts better by 1, 10 worse: two-sided sign test p = 2 * P(X >= 30), X ~ B(40, 1/2) = 0.00222."""
    exact = 2 * sum(math.comb(40, k) for k in range(30, 41)) / 2**40
    assert exact == pytest.approx(0.00222, abs=1e-5)
    assert sign_flip([1.0] * 30 + [-1.0] * 10, seed=1, resamples=20_000) == pytest.approx(exact, abs=0.001)


def test_spread_and_standard_error_by_hand():
    """1, 2, 3, 4: mean 2.5, sd sqrt(5/3) = 1.290994, standard error half of it."""
    assert spread([1.0, 2.0, 3.0, 4.0]) == pytest.approx((2.5, 1.290994))
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx(0.645497)
    assert spread([7.0]) == (7.0, 0.0)


def test_edit_distance_by_hand():
    """kitten -> sitten -> sittin -> sitting: 3 of 7 letters. One token of four changed: a quarter."""
    assert statistics.edit_distance("kitten", "sitting") == 3
    assert statistics.normalised_edit_distance("kitten", "sitting") == pytest.approx(3 / 7)
    assert statistics.normalised_edit_distance((5, 6, 7, 2), (5, 9, 7, 2)) == 0.25
    assert [statistics.edit_distance("", "abc"), statistics.edit_distance("abc", ""), statistics.edit_distance("", "")
            ] == [3, 3, 0]
    assert statistics.normalised_edit_distance("", "") == 0.0


def test_edit_distance_is_that_of_the_table():
    """Against the table of Wagner and Fischer, on sequences longer than a machine word too."""
    def by_table(a: str, b: str) -> int:
        row = list(range(len(b) + 1))
        for i, x in enumerate(a, 1):
            before, row[0] = row[0], i
            for j, y in enumerate(b, 1):
                before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
        return row[-1]

    rng = random.Random(0)
    for most in (1, 3, 8, 90):
        for _ in range(30):
            a, b = ("".join(rng.choices("abcd", k=rng.randint(0, most))) for _ in range(2))
            assert statistics.edit_distance(a, b) == by_table(a, b), (a, b)
