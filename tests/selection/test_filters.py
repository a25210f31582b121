"""Filters: what may be compared, how scores are corrected, what a made group must show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import problems_of
from pipeline.errors import UserError
from pipeline.records import LENGTH, STOP, Completion, Group, Message
from pipeline.selection.filters import Correction, Filters, clean, compared, jaccard, lines, ngrams

NAN = float("nan")


def group_of(*scores: float, ids: str | None = None, cut: str = "") -> Group:
    """One sample per score; `ids` gives each a token id by letter, `cut` the letters cut at the token limit."""
    letters = ids or "abcdefgh"[: len(scores)]
    completions = tuple(
        Completion(letter, (ord(letter), 2), LENGTH if letter in cut else STOP, {"reward": score}, sample=i)
        for i, (letter, score) in enumerate(zip(letters, scores, strict=True))
    )
    return Group("p1", (Message("user", "hi"),), completions, (1, 5))


def written(*texts: str, scores: tuple[float, ...] = ()) -> Group:
    values = scores or tuple(map(float, range(len(texts))))
    given = zip(texts, values, strict=True)
    return Group("p1", (), tuple(Completion(t, (), scores={"reward": v}, sample=i) for i, (t, v) in enumerate(given)))


def samples(group: Group) -> list[int]:
    return [c.sample for c in group.completions]


@pytest.mark.parametrize(
    ("group", "filters", "reason", "gone"),
    [
        (group_of(), Filters(), "", {}),
        (group_of(1.0), Filters(), "", {}),
        (group_of(1.0, 2.0, cut="a"), Filters(truncated="drop"), "truncated", {"truncated": 1}),
        (group_of(NAN, 2.0), Filters(), "score_not_finite", {"score_not_finite": 1}),
        (group_of(float("inf"), 2.0), Filters(), "score_not_finite", {"score_not_finite": 1}),
        (group_of(1.0, 2.0, ids="aa"), Filters(), "duplicates", {"duplicates": 1}),
        (group_of(1.0, 2.0, 3.0, ids="aab", cut="b"), Filters(truncated="drop"), "duplicates",
         {"truncated": 1, "duplicates": 1}),
        (written("", "x"), Filters(), "empty", {"empty": 1}),
        (written("a b", "a b c", "a b c d"), Filters(min_length=4), "too_short", {"too_short": 2}),
        (written("a b", "a b c", "a b c d"), Filters(max_length=2), "too_long", {"too_long": 2}),
        (written("a b c d", "A B C d", "x"), Filters(near_duplicates=1.0), "", {"near_duplicates": 1}),
    ],
)
def test_what_goes_and_why(group: Group, filters: Filters, reason: str, gone: dict[str, int]) -> None:
    assert clean(group, filters, ("reward",))[1:] == (gone, reason)


def test_of_identical_samples_the_first_stays_unless_asked_otherwise() -> None:
    """Noise of the scorer between equal completions must not make a pair of them."""
    group = group_of(1.0, 5.0, 1.1, 3.0, ids="abac")
    assert samples(clean(group, Filters(), ("reward",))[0]) == [0, 1, 3]
    assert samples(clean(group, Filters(duplicates="keep"), ("reward",))[0]) == [0, 1, 2, 3]


def test_near_duplicates_by_word_trigrams() -> None:
    """a b c d e and a b c d f: trigrams abc bcd cde / abc bcd cdf, 2 of 4 shared. The third shares nothing. With pairs
    of words: 3 of 5.
    """
    group = written("a b c d e", "a b c d f", "v w x y z")
    assert jaccard(ngrams("a b c d e", 3), ngrams("a b c d f", 3)) == 0.5
    assert jaccard(ngrams("a b c d e", 2), ngrams("a b c d f", 2)) == 0.6
    assert ngrams("One two", 3) == {("one", "two")}
    assert samples(clean(group, Filters(near_duplicates=0.5), ("reward",))[0]) == [0, 2]
    assert samples(clean(group, Filters(near_duplicates=0.6), ("reward",))[0]) == [0, 1, 2]
    assert samples(clean(group, Filters(near_duplicates=0.6, ngram=2), ("reward",))[0]) == [0, 2]


@given(st.text(max_size=30), st.text(max_size=30), st.integers(1, 4))
def test_jaccard_is_a_symmetric_share(one: str, other: str, n: int) -> None:
    a, b = ngrams(one, n), ngrams(other, n)
    assert 0.0 <= jaccard(a, b) == jaccard(b, a) <= 1.0
    assert jaccard(a, a) == 1.0


def test_every_score_the_rule_reads_must_be_there_and_finite() -> None:
    group = written("x", "y")
    with pytest.raises(UserError, match=r"sample 0 of 'p1' has no score 'rewards' \(did you mean reward"):
        clean(group, Filters(), ("reward", "rewards"))


def test_the_regression_on_length() -> None:
    """Words and scores: (1, 2), (3, 6) in one prompt, (2, 14), (4, 18) in the other. Within prompts the slope is 2.
    Over all: mean length 2.5, mean score 10; products (-1.5)(-8) + 0.5(-4) + (-0.5)4 + 1.5*8 = 20; squares 5: slope 4.
    """
    table = [written("a", "a b c", scores=(2.0, 6.0)), written("a b", "a b c d", scores=(14.0, 18.0))]
    within = lines(table, Filters(length_debias="within"), ("reward",))["reward"]
    pooled = lines(table, Filters(length_debias="pooled"), ("reward",))["reward"]
    assert (within.slope, within.mean_length, within.mean_score) == pytest.approx((2.0, 2.5, 10.0))
    assert (pooled.slope, pooled.mean_length, pooled.mean_score) == pytest.approx((4.0, 2.5, 10.0))
    assert lines(table, Filters(), ("reward",)) == {}
    corrected = Correction(Filters(), ("reward",), {"reward": within}).apply(table[0])
    assert [c.scores for c in corrected.completions] == [{"reward": 5.0, "reward_raw": 2.0},
                                                         {"reward": 5.0, "reward_raw": 6.0}]


def test_equal_lengths_have_no_slope() -> None:
    table = [written("a", "b")]
    assert lines(table, Filters(length_debias="pooled"), ("reward",))["reward"].slope == 0.0


def test_a_cut_sample_pays_its_penalty() -> None:
    group = group_of(1.0, 9.0, cut="b")
    made = Correction(Filters(truncated="penalise", penalty=10.0), ("reward",)).apply(group)
    assert [c.scores["reward"] for c in made.completions] == [1.0, -1.0]
    assert [c.scores["reward_raw"] for c in made.completions] == [1.0, 9.0]
    assert Correction(Filters(), ("reward",)).apply(group) is group


def test_what_is_not_better_by_enough_is_no_comparison() -> None:
    """Best 5, then 5, 4, 1."""
    group = group_of(5.0, 5.0, 4.0, 1.0)
    assert samples(group) == [0, 1, 2, 3]
    for filters, left, gone in (
        (Filters(), [0, 2, 3], {"tied_scores": 1}),
        (Filters(ties="keep"), [0, 1, 2, 3], {}),
        (Filters(min_margin=1.0), [0, 2, 3], {"tied_scores": 1}),
        (Filters(min_margin=1.5), [0, 3], {"tied_scores": 1, "low_margin": 1}),
    ):
        made, found, reason = compared(group, filters, "reward")
        assert made is not None
        assert (samples(made), found, reason) == (left, gone, "")
    assert compared(group, Filters(min_margin=9.0), "reward")[::2] == (None, "low_margin")
    assert compared(group_of(2.0, 2.0), Filters(), "reward") == (None, {"tied_scores": 1}, "tied_scores")


def test_settings_are_checked() -> None:
    for values, expected in (
        ({"truncated": "no"}, "filters.truncated: 'no' is not allowed, expected one of keep, drop, penalise"),
        ({"truncated": "penalise"}, "filters.penalty: 0 takes nothing off, expected 0 < x with truncated=penalise"),
        ({"min_length": 5, "max_length": 4}, "filters.max_length: 4 is below min_length 5"),
        ({"near_duplicates": 1.5}, "filters.near_duplicates: 1.5 is out of range, expected 0.0 < x <= 1.0"),
        ({"min_margin": 0}, "filters.min_margin: 0.0 is out of range, expected 0.0 < x"),
    ):
        assert problems_of(Filters, values, "filters") == [expected]
