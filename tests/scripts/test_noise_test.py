"""The groups of the noise test: who is preferred, and what the near-copy of it looks like."""

from __future__ import annotations

import numpy as np

from pipeline.records import Completion, Group, Message
from scripts import noise_test


def group(*scored: tuple[tuple[int, ...], float]) -> Group:
    completions = tuple(Completion("", ids, scores={"reward": score}) for ids, score in scored)
    return Group("g", (Message("user", "?"),), completions, prompt_ids=(1, 9))


def test_the_best_sample_comes_first_and_each_text_once():
    """Three texts, one of them twice: preferred 8 5 6 2 with score 3, then 2, then 1."""
    found = noise_test.best_first(group(((7, 5, 6, 2), 1.0), ((8, 5, 6, 2), 3.0), ((7, 5, 6, 2), 1.0),
                                        ((9, 5, 6, 2), 2.0)), "reward")
    assert [c.tolist() for c in found.completions] == [[8, 5, 6, 2], [9, 5, 6, 2], [7, 5, 6, 2]]


def test_groups_with_nothing_to_draw_from_are_left_out():
    """Two distinct texts, or a preferred one of three tokens: no candidates, or nothing to swap."""
    assert noise_test.best_first(group(((7, 5, 6, 2), 1.0), ((8, 5, 6, 2), 3.0), ((8, 5, 6, 2), 3.0)), "reward") is None
    assert noise_test.best_first(group(((7, 5, 2), 3.0), ((8, 5, 6, 2), 1.0), ((9, 5, 6, 2), 2.0)), "reward") is None


def test_the_copy_is_the_preferred_one_with_two_tokens_swapped():
    """Whatever the seed: the same tokens, two places differ, the stop id stays last."""
    example = noise_test.best_first(group(((5, 5, 6, 7, 2), 3.0), ((8, 5, 6, 2), 1.0), ((9, 5, 6, 2), 2.0)), "reward")
    for seed in range(20):
        copy = noise_test.with_copy(example, seed).completions[-1]
        assert sorted(copy) == [2, 5, 5, 6, 7] and copy[-1] == 2
        assert np.count_nonzero(copy != example.completions[0]) == 2
