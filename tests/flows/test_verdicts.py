"""What an iteration's numbers mean: every rule by values, and that each has its heading in the docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flows import verdicts
from flows.verdicts import BAD, GOOD, WATCH

CALM = {"gold": 0.77, "gold_low": 0.70, "gold_high": 0.83, "learned": 0.80, "same_length": 0.75, "length": 33.0,
        "start_length": 31.0, "truncated": 0.0, "kl": 2.0, "reward_model": 0.65, "repeated": 1.2}


def said(now: dict[str, float], before: dict[str, float] | None = None) -> dict[str, tuple[str, str]]:
    return {one.rule: (one.level, one.text) for one in verdicts.verdicts(now, before)}


def test_a_calm_first_iteration():
    assert said(CALM) == {
        "gold": (GOOD, "gold rose: 77.0% against what it began with (70.0% to 83.0%)"),
        "quiet": (GOOD, "nothing else stands out: learned reward, length, KL and repetition fit")}


def test_the_gamed_run_of_the_docs():
    """Iteration 2 of the run `hacked` in docs/reading-a-run.md, by its own numbers."""
    now = {**CALM, "gold": 0.752, "learned": 0.986, "same_length": 0.633, "length": 57.0, "kl": 8.5,
           "reward_model": 0.507, "repeated": 5.2, "gain": -0.02, "gain_low": -0.065, "gain_high": 0.024}
    found = said(now, {**CALM, "gold": 0.771, "learned": 0.796})
    assert found["gold"] == (WATCH, "gold cannot tell: -2.0 points on the iteration before (-6.5 to +2.4 points)")
    assert found["gamed"] == (BAD, "learned up, gold down: +19.0 points by the learned reward, -1.9 points by gold: "
                                   "the policy learns what the reward model likes")
    assert found["length"] == (BAD, "answers are 84% longer, and at equal length the win rate is 63.3%, not 75.2%: "
                                    "part of it is length")
    assert found["divergence"][0] == WATCH and "8.5 nats an answer, 2.0 before" in found["divergence"][1]
    assert found["reward-model"] == (BAD, "the reward model orders 50.7% of the new samples as gold does: it guesses")
    assert found["repetition"] == (WATCH, "5.2 repeated 3-grams an answer, 1.2 before")
    assert "quiet" not in found


@pytest.mark.parametrize(("change", "rule", "level"), [
    ({"gain": 0.04, "gain_low": 0.01, "gain_high": 0.07}, "gold", GOOD),
    ({"gain": -0.04, "gain_low": -0.07, "gain_high": -0.01}, "gold", BAD),
    ({"learned": 0.92}, "gamed", WATCH), ({"learned": 0.91}, "gamed", None),
    ({"length": 46.5}, "length", WATCH), ({"length": 46.0}, "length", None),
    ({"length": 38.75, "same_length": 0.71}, "length", BAD), ({"length": 38.7, "same_length": 0.71}, "length", None),
    ({"kl": 10.0}, "divergence", WATCH), ({"kl": 9.9}, "divergence", None),
    ({"reward_model": 0.549}, "reward-model", BAD), ({"reward_model": 0.599}, "reward-model", WATCH),
    ({"reward_model": 0.6}, "reward-model", None),
    ({"truncated": 0.05}, "truncated", WATCH), ({"truncated": 0.2}, "truncated", BAD),
    ({"truncated": 0.049}, "truncated", None),
])
def test_thresholds(change: dict[str, float], rule: str, level: str | None):
    assert said({**CALM, **change}).get(rule, (None,))[0] == level


@pytest.mark.parametrize(("change", "rule"), [({"kl": 6.0}, "divergence"), ({"repeated": 2.4}, "repetition")])
def test_against_the_iteration_before(change: dict[str, float], rule: str):
    assert rule in said({**CALM, **change}, CALM)
    assert rule not in said({**CALM, **{k: v - 0.01 for k, v in change.items()}}, CALM)
    assert rule not in said({**CALM, **change})


def test_a_rule_without_its_numbers_is_silent():
    assert said({}) == {} and said({"kl": 1.0, "length": 40.0}) == {}


def test_every_verdict_names_the_numbers_it_was_decided_by():
    for one in verdicts.verdicts({**CALM, "learned": 1.0, "length": 90.0, "kl": 20.0, "truncated": 0.5}, CALM):
        assert one.rule == "quiet" or one.numbers


def test_of_a_runs_steps():
    """The counts' own names; an iteration without numbers is passed over, and the one before stays the one before."""
    steps = [(0, "evaluate", {"win_rate": 0.9}), (1, "evaluate", {"win_rate": 0.6, "win_rate_reward": 0.6}),
             (2, "train_preference", {"steps": 3}), (3, "evaluate", {"win_rate": 0.59, "win_rate_reward": 0.7})]
    found = dict(verdicts.of_steps(steps))
    assert list(found) == [1, 3] and [one.rule for one in found[3]] == ["gamed"]


def test_every_rule_has_its_heading_in_the_docs():
    text = (Path(__file__).parents[2] / "docs" / "reading-a-run.md").read_text()
    rules = set(re.findall(r'Verdict\("([a-z-]+)"', Path(verdicts.__file__).read_text()))
    assert len(rules) == 8 and all(f"### {rule}\n" in text for rule in rules)
