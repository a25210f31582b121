"""Rates over seeds and paired tests, by hand: prompts are the units, an arm's seeds are pooled within each."""

from __future__ import annotations

import pytest

from pipeline import arms
from pipeline.arms import Judged, Rate


def judged(seed: str, *outcomes: float, baseline: str = "b") -> Judged:
    named = {f"p{i}": value for i, value in enumerate(outcomes)}
    return Judged(f"run-{seed}", seed, 1, "0" * 20, {}, {}, named, ("gold", baseline))


def test_a_rate_is_the_mean_over_prompts_with_the_deviation_over_seeds():
    """Seeds 0.5 and 0.75: mean 0.625, sd 0.25 / sqrt 2. Each prompt counts once, so 4 prompts stay 4."""
    found = arms.rate([judged("0", 1, 1, 0, 0), judged("1", 1, 1, 1, 0)])
    assert (found.mean, found.prompts, found.by_seed) == (0.625, 4, (0.5, 0.75))
    assert found.sd == pytest.approx(0.25 / 2**0.5)
    assert found.low < 0.625 < found.high


def test_more_seeds_that_say_the_same_do_not_narrow_the_interval():
    """They are no more prompts: the same models judged again would otherwise look like proof."""
    one, three = (arms.rate([judged(str(seed), 1, 0, 1, 1, 0, 1) for seed in range(n)]) for n in (1, 3))
    assert (one.low, one.high) == (three.low, three.high)


def test_a_difference_is_paired_by_prompt_and_seed():
    """Better by 0.5 on every prompt of either seed: no spread at all, and 2 of 2^6 sign patterns are as far from 0."""
    base = [0.0, 0.5, 0.25, 0.0, 0.5, 0.25]
    ours = [judged(seed, *(value + 0.5 for value in base)) for seed in "01"]
    found = arms.difference(ours, [judged(seed, *base) for seed in "10"])
    assert isinstance(found, Rate)
    assert (found.mean, found.low, found.high, found.clear, found.by_seed) == (0.5, 0.5, 0.5, 1, (0.5, 0.5))
    assert found.p_value == 2 / 2**6
    assert arms.difference(ours, ours).clear == 0


def test_what_cannot_be_paired_says_why():
    ours = [judged("0", 1, 0)]
    assert arms.difference(ours, [judged("1", 1, 0)]) == "no seed in common"
    assert arms.difference(ours, [judged("0", 1, 0, baseline="c")]) == (
        "judged by another score or against other answers")
    other = Judged("r", "0", 1, "0" * 20, {}, {}, {"q": 1.0}, ("gold", "b"))
    assert arms.difference(ours, [other]) == "no prompt in common"


def test_holm_by_hand():
    """p 0.01, 0.04, 0.03 of three: 0.03, then 2 x 0.03 = 0.06, and the last no less than that."""
    made = [Rate(0.1, 0.0, 0.2, 9, 0.0, ("0",), (0.1,), p) for p in (0.01, 0.04, 0.03)]
    assert [one.adjusted for one in arms.holm(made)] == pytest.approx([0.03, 0.06, 0.06])
