"""Judges of pairs: both orders, the three schemes, what a judge must not return."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import problems_of, settled
from pipeline.errors import UserError
from pipeline.records import Completion, Group, Message
from pipeline.rewards import pairwise

GROUP = Group("p", (Message("user", "hi"),), tuple(map(Completion, ("a a a a a a", "a b c d", "x y z x y z"))))


def longer_with_a_favourite(messages: Sequence[dict[str, str]], first: str, second: str) -> float:
    """0.8 for the longer, and 0.2 more for whatever stands first."""
    assert messages == [{"role": "user", "content": "hi"}]
    return (0.7 if len(first) > len(second) else 0.1) + 0.2


def no_probability(messages: Sequence[dict[str, str]], first: str, second: str) -> float:
    return 7.0


def settings_of(scheme: str, function: str = "longer_with_a_favourite") -> pairwise.Settings:
    return pairwise.Settings(f"{__name__}.{function}", scheme)


def test_a_favourite_position_cancels() -> None:
    """f(i, j) = 0.9 and f(j, i) = 0.3: p = (0.9 + 0.7) / 2 = 0.8; where it prefers what stands first, 1/2."""
    assert pairwise.swapped(lambda a, b: 0.9 if a < b else 0.3, 0, 1) == pytest.approx(0.8)
    assert pairwise.swapped(lambda a, b: 0.9, 0, 1) == pytest.approx(0.5)


def test_the_three_schemes() -> None:
    """Lengths 1, 3, 2; a longer one beats a shorter with 0.8. Win rates (0.5 + 0.2 + 0.2) / 3, (0.8 + 0.5 + 0.8) / 3,
    (0.8 + 0.2 + 0.5) / 3. Against the first: 1/2, 0.8, 0.8. The judge's favourite hides nothing from the champion.
    """
    group = Group("p", (Message("user", "hi"),), tuple(map(Completion, ("a", "abc", "ab"))))
    empty = Group("q", (Message("user", "hi"),))
    all_of, empty_of = pairwise.scorer(settings_of("all"))([group, empty])
    assert all_of == pytest.approx([0.3, 0.7, 0.5])
    assert empty_of == []
    assert pairwise.scorer(settings_of("baseline"))([group, empty])[0] == pytest.approx([0.5, 0.8, 0.8])
    assert pairwise.scorer(settings_of("champion"))([group, empty]) == [[0.0, 1.0, 0.0], []]


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6))
def test_win_rates_average_to_one_half(strengths: list[float]) -> None:
    def judge(one: int, other: int) -> float:
        return 1.0 if strengths[one] > strengths[other] else 0.25

    rates = pairwise.all_win_rates(len(strengths), judge)
    assert sum(rates) / len(rates) == pytest.approx(0.5)
    assert all(0.0 <= rate <= 1.0 for rate in rates)


def test_the_judge_to_start_from() -> None:
    """Shares of fresh 3-grams: 1/4, 1, 3/4 of four."""
    settings = pairwise.Settings("pipeline.rewards.pairwise.fresher", "champion")
    assert pairwise.scorer(settings)([GROUP]) == [[0.0, 1.0, 0.0]]
    assert pairwise.fresher([], "a b c", "d e f") == 0.5


def test_what_is_wrong() -> None:
    with pytest.raises(UserError, match=r"no_probability: returned 7.0 for 'p', expected the probability"):
        pairwise.scorer(settings_of("all", "no_probability"))([GROUP])
    assert "no function" in problems_of(pairwise.Settings, {"function": "pipeline.rewards.pairwise.nope"}, "r")[0]
    settings = pairwise.Settings("pipeline.rewards.pairwise.fresher")
    assert [p.name for p in pairwise.SCORER.files(settings)] == ["pairwise.py"]
    assert not settled(pairwise.SCORER.needs_model, settings)
