"""Repetition, counted by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.diversity import distinct, duplicate_share, ngrams, repeats


def test_repeat_at_3gram_by_hand():
    """Prompt 1 2 3 4; answer 1 2 3 9 1 2 3. Its 3-grams: 123 239 391 912 123. In the prompt: the first and the last.
    Seen before in the answer: the last. Either: 2, because an occurrence counts once."""
    found = repeats([((1, 2, 3, 4), (1, 2, 3, 9, 1, 2, 3))])
    assert (found.either, found.in_prompt, found.in_answer) == (2.0, 2.0, 1.0)


def test_repeats_are_averaged_over_answers_not_over_grams():
    """A loop of 5 equal tokens has 3-grams aaa aaa aaa: two repeats; an answer too short for a 3-gram has none."""
    found = repeats([((), (7,) * 5), ((), (7, 7))])
    assert (found.either, found.in_prompt, found.in_answer) == (1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="no answers"):
        repeats([])


def test_distinct_n_by_hand():
    """Answers 1 2 1 and 1 2: unigrams {1, 2} of 5, bigrams {12, 21} of 3; no 3-gram but 121."""
    answers = [(1, 2, 1), (1, 2)]
    assert distinct(answers, 1) == pytest.approx(2 / 5)
    assert distinct(answers, 2) == pytest.approx(2 / 3)
    assert distinct(answers, 3) == 1.0
    assert distinct([(1,)], 2) is None


def test_duplicates_are_answers_to_the_same_prompt():
    """Prompt one: a a b, one duplicate; prompt two: a, none, though a is there again. 1 of 4."""
    assert duplicate_share([[(1,), (1,), (2,)], [(1,)]]) == 0.25
    with pytest.raises(ValueError, match="no answers"):
        duplicate_share([])


@given(st.lists(st.integers(0, 3), max_size=20), st.lists(st.integers(0, 3), max_size=20))
def test_an_occurrence_counts_once(prompt: list[int], answer: list[int]):
    found = repeats([(prompt, answer)])
    assert max(found.in_prompt, found.in_answer) <= found.either <= found.in_prompt + found.in_answer
    assert found.either <= len(ngrams(answer, 3))
    assert found.in_answer == len(ngrams(answer, 3)) - len(set(ngrams(answer, 3)))
