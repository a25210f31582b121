"""When a gate closes, by hand."""

import math

import pytest

from pipeline.evaluation.gate import Findings, Rules, Standing, baseline_standing, findings, standing

BEFORE = Standing(win_rate=0.6, judged=1.0, learned=0.5, tokens=100.0)


@pytest.mark.parametrize(
    ("now", "closed"),
    [
        (Standing(0.55, 0.9, 0.7, 100.0), True),  # the judge sees less, the reward more
        (Standing(0.65, 1.1, 0.7, 100.0), False),  # both rise
        (Standing(0.55, 0.9, 0.4, 100.0), False),  # both fall: bad luck, not a hacked reward
        (Standing(0.59, 0.9, 0.7, 100.0), False),  # within the margin of 0.02
        (Standing(0.65, 1.1, 0.7, 151.0), True),  # half as long again
        (Standing(0.65, 1.1, 0.7, 150.0), False),
    ],
)
def test_rules(now: Standing, closed: bool):
    found = findings(now, BEFORE, Rules(win_rate_fall=0.02, length_growth=0.5), "gold", "reward")
    assert bool(found.reasons) is closed and found.undecided == []


def test_rules_can_be_off_and_reasons_carry_the_numbers():
    bad = Standing(0.4, 0.5, 0.9, 300.0)
    assert findings(bad, BEFORE, Rules(None, None), "gold", "reward") == Findings([], [])
    assert findings(bad, BEFORE, Rules(0.0, 1.0), "gold", "reward").reasons == [
        "the win rate fell from 60.0% to 40.0% while the learned reward rose from 0.500 to 0.900",
        "answers grew from 100.0 to 300.0 tokens, more than 100%",
    ]


@pytest.mark.parametrize(
    ("now", "judge", "said"),
    [
        (Standing(0.4, 0.9, None, 100.0), "gold", "no finite learned reward 'reward' of this iteration"),
        (Standing(None, None, 0.7, 100.0), "gold", "no finite win rate by 'gold' of this iteration"),
        (Standing(0.9, 0.9, None, 100.0), "gold", "no finite learned reward 'reward' of this iteration"),  # rising, too
        (Standing(0.4, 0.9, 0.7, 100.0), "reward", "the judge is the learned reward itself"),
    ],
)
def test_what_cannot_be_decided_stops_nothing_and_is_said(now: Standing, judge: str, said: str):
    found = findings(now, BEFORE, Rules(0.0, 0.5), judge, "reward")
    assert found == Findings([], [f"cannot decide whether the win rate fell while the learned reward rose: {said}"])


def test_a_rule_that_can_be_decided_still_is():
    now, before = Standing(0.4, None, None, 300.0), Standing(0.6, 1.0, None, 100.0)
    found = findings(now, before, Rules(0.0, 0.5), "gold", "reward")
    assert found.reasons == ["answers grew from 100.0 to 300.0 tokens, more than 50%"]
    assert "reward 'reward' of this iteration, no finite learned reward 'reward' of what it is" in found.undecided[0]
    assert findings(Standing(0.4, None, None, None), before, Rules(None, 0.5), "gold", "reward").undecided == [
        "cannot decide whether answers grew: no finite mean length of this iteration"]


def test_standings_are_read_from_an_evaluation():
    evaluation = {
        "score": "gold", "policy": {"tokens": 12.0}, "baseline": {"tokens": 10.0},
        "scores": {"gold": {"win_rate": 0.7, "mean": 2.0, "baseline_mean": 1.0},
                   "reward": {"win_rate": 0.9, "mean": 5.0, "baseline_mean": 3.0}},
    }
    assert standing(evaluation, "reward") == Standing(0.7, 2.0, 5.0, 12.0)
    assert baseline_standing(evaluation, "reward") == Standing(0.5, 1.0, 3.0, 10.0)
    assert standing(evaluation, "other").learned is None
    evaluation["scores"]["reward"] |= {"mean": math.nan, "baseline_mean": math.inf}
    assert standing(evaluation, "reward").learned is None and baseline_standing(evaluation, "reward").learned is None
