"""best_worst and best_rest: which samples of a prompt make a group, and why a prompt makes none."""

from __future__ import annotations

import pytest

from pipeline.build import problems_of
from pipeline.records import LENGTH, STOP, Completion, Group, Message, UserError
from pipeline.selection import best_rest, best_worst

NAN = float("nan")


def group_of(*scores: float, ids: str | None = None, cut: str = "") -> Group:
    """One sample per score; `ids` gives each a token id by letter, `cut` the letters cut at the token limit."""
    letters = ids or "abcdefgh"[: len(scores)]
    completions = tuple(
        Completion(letter, (ord(letter), 2), LENGTH if letter in cut else STOP, {"reward": score}, sample=i)
        for i, (letter, score) in enumerate(zip(letters, scores, strict=True))
    )
    return Group("p1", (Message("user", "hi"),), completions, (1, 5), weight=0.5, dataset="d", iteration=2)


def texts(group: Group | None) -> str:
    assert group is not None
    return "".join(c.text for c in group.completions)


@pytest.mark.parametrize(
    ("scores", "pair"),
    [((1.0, 3.0, -2.0, 0.0), "bc"), ((5.0, 4.0), "ab"), ((1.0, 2.0, 2.0, 1.0), "ba"), ((0.0, 0.0, 1e-9), "ca")],
)
def test_best_against_worst_the_earlier_of_equals(scores: tuple[float, ...], pair: str) -> None:
    made, reason = best_worst.select(group_of(*scores), best_worst.Settings())
    assert (texts(made), reason) == (pair, "")


def test_the_group_keeps_what_it_is() -> None:
    made, _ = best_worst.select(group_of(1.0, 2.0, 3.0), best_worst.Settings())
    assert made is not None
    assert (made.id, made.prompt_ids, made.weight, made.dataset, made.iteration) == ("p1", (1, 5), 0.5, "d", 2)
    assert [c.sample for c in made.completions] == [2, 0]


@pytest.mark.parametrize(
    ("group", "truncated", "reason"),
    [
        (group_of(), "keep", "too_few_samples"),
        (group_of(1.0), "keep", "too_few_samples"),
        (group_of(1.0, 2.0, cut="a"), "drop", "truncated"),
        (group_of(NAN, 2.0), "keep", "score_not_finite"),
        (group_of(float("inf"), 2.0), "keep", "score_not_finite"),
        (group_of(1.0, 2.0, ids="aa"), "keep", "duplicates"),
        (group_of(1.0, 1.0, 1.0), "keep", "tied_scores"),
        (group_of(1.0, 2.0, 3.0, ids="aab", cut="b"), "drop", "duplicates"),
    ],
)
def test_reasons_of_a_drop(group: Group, truncated: str, reason: str) -> None:
    assert best_worst.select(group, best_worst.Settings(truncated=truncated)) == (None, reason)
    assert best_rest.select(group, best_rest.Settings(truncated=truncated)) == (None, reason)


def test_cut_samples_are_kept_unless_asked_otherwise() -> None:
    group = group_of(1.0, 9.0, 3.0, cut="b")
    assert texts(best_worst.select(group, best_worst.Settings())[0]) == "ba"
    assert texts(best_worst.select(group, best_worst.Settings(truncated="drop"))[0]) == "ca"


def test_a_bad_score_takes_out_its_sample_only() -> None:
    assert texts(best_worst.select(group_of(1.0, NAN, 3.0), best_worst.Settings())[0]) == "ca"


def test_of_identical_samples_the_first_stays() -> None:
    """Noise of the scorer between equal completions must not make a pair of them."""
    made, _ = best_rest.select(group_of(1.0, 5.0, 1.1, 3.0, ids="abac"), best_rest.Settings())
    assert made is not None
    assert [(c.text, c.sample) for c in made.completions] == [("b", 1), ("c", 3), ("a", 0)]


def test_an_empty_answer_without_tokens_is_no_completion() -> None:
    empty = Group("p", (), (Completion("", scores={"reward": 1.0}), Completion("x", scores={"reward": 2.0})))
    assert best_worst.select(empty, best_worst.Settings()) == (None, "empty")


def test_best_first_then_the_others_by_score() -> None:
    made, reason = best_rest.select(group_of(1.0, 3.0, -2.0, 3.0, 0.0), best_rest.Settings())
    assert (texts(made), reason) == ("bdaec", "")


def test_fewer_candidates_than_asked() -> None:
    group = group_of(1.0, 3.0, 2.0, ids="aba")
    assert best_rest.select(group, best_rest.Settings(min_candidates=2)) == (None, "duplicates")
    assert texts(best_rest.select(group, best_rest.Settings(min_candidates=1))[0]) == "ba"


def test_a_score_nobody_has_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"sample 0 of 'p1' has no score 'rewards' \(did you mean reward\?\)"):
        best_worst.select(group_of(1.0, 2.0), best_worst.Settings(score="rewards"))


def test_settings_are_checked() -> None:
    assert problems_of(best_worst.Settings, {"truncated": "no"}, "selection") == [
        "selection.truncated: 'no' is not allowed, expected one of keep, drop"
    ]
    assert problems_of(best_rest.Settings, {"min_candidates": 0}, "selection") == [
        "selection.min_candidates: 0 is out of range, expected 1 <= x"
    ]
