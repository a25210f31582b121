"""The table a run ends with and its line: numbers of comparison.json under their columns."""

from __future__ import annotations

from typing import Any

import pytest

from flows import outcome, rewarded


def entry(iteration: int, rate: float, gain: tuple[float, float, float] | None, learned: float | None = 0.9) -> Any:
    verdict = {"win_rate": rate, "low": rate - 0.05, "high": rate + 0.05, "bootstrap_low": rate - 0.04,
               "bootstrap_high": rate + 0.04}
    scores = {"gold": verdict} | ({} if learned is None else {"reward": {**verdict, "win_rate": learned}})
    return {"iteration": iteration, "score": "gold", "scores": scores, "prompts": 140,
            "gain": None if gain is None else dict(zip(("mean", "low", "high"), gain, strict=True)),
            "length_controlled": {"win_rate": 0.7}, "policy": {"tokens": 40.0 + iteration, "truncated": 0.01},
            "baseline": {"tokens": 30.0, "truncated": 0.0}}


def test_the_sft_model_is_row_0_and_columns_are_what_they_say():
    found = outcome.rows([entry(1, 0.75, None), entry(2, 0.8, (0.05, 0.01, 0.09))], {1: 2.04})
    assert [dict(zip(outcome.HEADERS, row, strict=True)) for row in found] == [
        {"iteration": "0", "win rate (interval)": "50.0%", "learned": "50.0%", "same length": "50.0%", "KL": "0.0",
         "length": "30.0", "truncated": "0.0%"},
        {"iteration": "1", "win rate (interval)": "75.0% (70.0% to 80.0%)", "learned": "90.0%", "same length": "70.0%",
         "KL": "2.0", "length": "41.0", "truncated": "1.0%"},
        {"iteration": "2", "win rate (interval)": "80.0% (75.0% to 85.0%)", "learned": "90.0%", "same length": "70.0%",
         "KL": "none", "length": "42.0", "truncated": "1.0%"}]
    assert sum(max(map(len, cells)) for cells in zip(outcome.HEADERS, *found, strict=True)) + 2 * 6 <= 80


def test_without_one_baseline_there_is_no_row_0_and_without_a_second_score_no_learned_rate():
    """With evaluation=previous no gain is stated, and each rate is against the iteration before."""
    entries = [entry(1, 0.75, None, None), entry(2, 0.6, None, None)]
    assert [row[0] for row in outcome.rows(entries, {})] == ["1", "2"]
    assert [row[2] for row in outcome.rows(entries, {})] == ["none", "none"]
    assert outcome.title(entries).endswith("against those of the iteration before, by gold")
    assert outcome.seen(entries) == "iteration 2 above 1 by gold: +10.0 points (+6.0 to +14.0), clear of zero"


def test_the_rate_is_by_the_score_that_the_loop_optimises():
    """Three scores: neither the judge's nor the one that only stands by is taken for it."""
    made = entry(1, 0.75, None)
    made["scores"] |= {"rule": {"win_rate": 0.61}, "length": {"win_rate": 0.99}}
    assert [row[2] for row in outcome.rows([made], {}, "rule")] == ["50.0%", "61.0%"]
    assert [row[2] for row in outcome.rows([made], {}, "gold")] == ["none", "none"], "it judges"
    assert [row[2] for row in outcome.rows([made], {}, "other")] == ["none", "none"], "no answer has it"


@pytest.mark.parametrize("module, heading", [("pipeline.rewards.model", "learned"), ("pipeline.rewards.rule", "reward"),
                                             ("mine.scorer", "reward")])
def test_only_a_models_score_is_called_learned(module: str, heading: str):
    config = {"stage": {"score": {"settings": {"name": "mine", "reward": {"module": module}}}}}
    assert (rewarded.heading(config), rewarded.count_of(config)) == (heading, "win_rate_mine")


def test_a_record_that_does_not_say_it_is_of_a_learned_reward():
    assert (rewarded.heading({}), rewarded.name_of({"stage": {}})) == ("learned", "reward")


@pytest.mark.parametrize("gain, said", [
    ((0.05, 0.01, 0.09), "iteration 2 above 1 by gold: +5.0 points (+1.0 to +9.0), clear of zero"),
    ((0.02, -0.01, 0.05), "iteration 2 above 1 by gold: +2.0 points (-1.0 to +5.0), not clear of zero"),
    ((-0.05, -0.09, -0.01), "iteration 2 below 1 by gold: -5.0 points (-9.0 to -1.0), clear of zero"),
    ((0.0, -0.01, 0.01), "iteration 2 level with 1 by gold: +0.0 points (-1.0 to +1.0), not clear of zero"),
])
def test_one_line_says_what_was_seen(gain, said):
    assert outcome.seen([entry(1, 0.75, None), entry(2, 0.8, gain)]) == said
    assert len(said) <= 80


def test_a_single_iteration_is_held_against_the_sft_model():
    assert outcome.seen([entry(1, 0.75, None)]) == (
        "iteration 1 above SFT by gold: +25.0 points (+21.0 to +29.0), clear of zero")
