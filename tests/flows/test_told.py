"""Three sentences about a run, by its numbers."""

from __future__ import annotations

from typing import Any

from flows.told import told

JUDGED = {"win_rate": 0.771, "win_rate_low": 0.695, "win_rate_high": 0.833, "prompts": 140, "win_rate_reward": 0.79}


def steps(**changes: float) -> list[tuple[int, str, dict[str, Any]]]:
    return [(0, "sft", {"groups": 1750}), (1, "train_preference", {"groups": 1750}),
            (1, "generate", {"completions": 560}), (1, "evaluate", JUDGED), (2, "generate", {"completions": 4000}),
            (2, "train_preference", {"groups": 2750}), (2, "evaluate", {**JUDGED, **changes})]


def test_what_was_done_what_it_came_to_and_what_to_make_of_it():
    found = told(steps(), "win_rate_reward")
    assert found == [
        "The model learned from 1,750 given answers and was then trained twice on preferences (1,750, 2,750), for "
        "which, and to be judged, it wrote 4,560 answers.",
        "After iteration 2 its answers are better than those of the model it is compared with: they win 77.1 % of 140 "
        "prompts (69.5 to 83.3 %).",
        "No rule finds anything odd in how it got there; other seeds would show how far that is chance."]


def test_the_worst_that_a_rule_says_is_what_to_make_of_it():
    """Learned up, gold down: not a word of praise; an interval around a half is no win."""
    found = told(steps(win_rate=0.51, win_rate_low=0.43, win_rate_high=0.59, win_rate_reward=0.99), "win_rate_reward")
    assert "are not told apart from those" in found[1]
    assert found[2].startswith("Do not trust that yet: learned up, gold down") and found[2].endswith(", gamed).")


def test_what_speaks_against_another_iteration_only_is_said_so():
    """The reward model guesses: gold's win stands all the same."""
    found = told([*steps(), (2, "diagnose", {"reward_model_accuracy": 0.52})], "win_rate_reward")
    assert found[2].startswith("Before another iteration: the reward model orders 52.0% of the new samples")


def test_a_run_that_nothing_judged_is_not_told_of():
    assert told(steps()[:2], "win_rate_reward") == []
