"""When a gate closes, by hand."""

import pytest

from pipeline.evaluation.gate import Rules, Standing, baseline_standing, reasons, standing

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
        (Standing(0.55, None, None, 100.0), False),  # nothing was learned that could rise
    ],
)
def test_rules(now: Standing, closed: bool):
    assert bool(reasons(now, BEFORE, Rules(win_rate_fall=0.02, length_growth=0.5))) is closed


def test_rules_can_be_off_and_reasons_carry_the_numbers():
    bad = Standing(0.4, 0.5, 0.9, 300.0)
    assert reasons(bad, BEFORE, Rules(None, None)) == []
    assert reasons(bad, BEFORE, Rules(0.0, 1.0)) == [
        "the win rate fell from 60.0% to 40.0% while the learned reward rose from 0.500 to 0.900",
        "answers grew from 100.0 to 300.0 tokens, more than 100%",
    ]


def test_standings_are_read_from_an_evaluation():
    evaluation = {
        "score": "gold", "policy": {"tokens": 12.0}, "baseline": {"tokens": 10.0},
        "scores": {"gold": {"win_rate": 0.7, "mean": 2.0, "baseline_mean": 1.0},
                   "reward": {"win_rate": 0.9, "mean": 5.0, "baseline_mean": 3.0}},
    }
    assert standing(evaluation, "reward") == Standing(0.7, 2.0, 5.0, 12.0)
    assert baseline_standing(evaluation, "reward") == Standing(0.5, 1.0, 3.0, 10.0)
    assert standing(evaluation, "other").learned is None
