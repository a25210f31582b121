"""Win rates, their errors and categories: by hand, and against the published AlpacaEval 2 leaderboard."""

import gzip
import json
import math
import os
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.evaluation.comparison import Pair, by_category, by_prompt, judge, match, side
from pipeline.records import LENGTH, Completion, Group, Message

DATA = os.environ.get("ALIGNLOOP_TEST_DATA")
real_data = pytest.mark.skipif(DATA is None, reason="ALIGNLOOP_TEST_DATA is not set")


def group(name: str, *texts: str, question: str = "q", dataset: str = "") -> Group:
    completions = tuple(Completion(text, sample=i) for i, text in enumerate(texts))
    return Group(name, (Message("user", question),), completions, dataset=dataset)


def of(*groups: Group) -> dict[str, Group]:
    return {g.id: g for g in groups}


def test_samples_meet_by_index():
    pairs, left_over = match(of(group("a", "x0", "x1", "x2")), of(group("a", "y0", "y1")))
    assert [(p.sample, p.ours.text, p.theirs.text) for p in pairs] == [(0, "x0", "y0"), (1, "x1", "y1")]
    assert left_over == {"no answer of the baseline": 1, "no answer of the policy": 0}


def test_a_single_given_answer_meets_every_sample():
    pairs, left_over = match(of(group("a", "x0", "x1", "x2")), of(group("a", "given")))
    assert [(p.ours.text, p.theirs.text) for p in pairs] == [("x0", "given"), ("x1", "given"), ("x2", "given")]
    assert left_over == {"no answer of the baseline": 0, "no answer of the policy": 0}
    assert [p.longer_by for p in pairs] == [-3, -3, -3]


def test_prompts_of_one_side_only_are_counted_and_one_id_for_two_prompts_refused():
    _, left_over = match(of(group("a", "x", "y")), of(group("b", "x")))
    assert left_over == {"no answer of the baseline": 2, "no answer of the policy": 1}
    with pytest.raises(UserError, match="prompt 'a' is 'q' in the groups and 'other' in the baseline"):
        match(of(group("a", "x")), of(group("a", "x", question="other")))


def test_verdict_by_hand():
    """Prompt a: 1 and 0.5, mean 0.75; b: 0. Win rate (0.75 + 0) / 2 = 0.375, not the samples' (1 + 0.5 + 0) / 3 = 0.5:
    prompts count alike, as in the intervals. sd of 0.75 and 0: 0.5303, SE 0.375. Wins, ties, losses count comparisons.
    """
    found = judge(["a", "a", "b"], [1.0, 0.5, 0.0], seed=0, resamples=200, confidence=0.95)
    assert (found.wins, found.ties, found.losses, found.prompts) == (1, 1, 1, 2)
    assert found.win_rate == 0.375
    assert found.standard_error == pytest.approx(0.375)
    assert (found.bootstrap_low, found.bootstrap_high) == (0.0, 0.75)


def test_equal_numbers_of_samples_give_the_share_of_the_comparisons():
    """a: 1, 0.5; b: 0, 0; c: 1, 1: (W + T/2) / all = (3 + 0.5) / 6, and (0.75 + 0 + 1) / 3 is the same."""
    found = judge(list("aabbcc"), [1.0, 0.5, 0.0, 0.0, 1.0, 1.0], seed=0, resamples=200, confidence=0.95)
    assert found.win_rate == pytest.approx((found.wins + found.ties / 2) / 6, abs=1e-15)
    assert by_prompt(list("aab"), [1.0, 0.5, 0.0]) == {"a": 0.75, "b": 0.0}


def test_a_second_turn_is_asked_of_both_sides_after_their_own_first_answers():
    def turn(answer: str) -> Group:
        said = (Message("user", "q"), Message("assistant", answer), Message("user", "and?"))
        return Group("a", said, (Completion("x"),))

    pairs, _ = match(of(turn("mine")), of(turn("theirs")))
    assert len(pairs) == 1


def test_a_judges_probabilities_count_as_they_are():
    """Preferences 0.9, 0.5, 0.2: mean 0.5333, one above and one below a half."""
    found = judge(["a", "b", "c"], [0.9, 0.5, 0.2], seed=0, resamples=200, confidence=0.95)
    assert found.win_rate == pytest.approx(1.6 / 3)
    assert (found.wins, found.ties, found.losses) == (1, 1, 1)


def test_categories_are_judged_apart_and_one_alone_is_no_table():
    one, other = Completion("x"), Completion("y")
    pairs = [Pair("1", "cook", 0, one, other), Pair("2", "cook", 0, one, other), Pair("3", "math", 0, one, other)]

    def judged(ids, outcomes):
        return judge(ids, outcomes, seed=0, resamples=100, confidence=0.9)

    found = by_category(pairs, [1.0, 0.0, 1.0], judged)
    assert {name: (v.win_rate, v.prompts) for name, v in found.items()} == {"cook": (0.5, 2), "math": (1.0, 1)}
    assert by_category(pairs[:2], [1.0, 0.0], judged) == {}


def test_a_side_by_hand():
    found = side([Completion("two words", (1, 2, 3), LENGTH), Completion("one", (1,))])
    assert (found.tokens, found.words, found.characters, found.truncated) == (2.0, 1.5, 6.0, 0.5)


@real_data
def test_every_published_raw_win_rate_of_alpaca_eval():
    """The judge's preferences of all 805 prompts give each model's published win rate and standard error to 2 decimals,
    and exactly its numbers of wins, draws and losses."""
    folder = Path(DATA) / "alpaca_eval"
    with gzip.open(folder / "judge_preferences.all805.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    published = {row["name"]: row for row in map(json.loads, (folder / "leaderboard_expected.jsonl").open())}
    models = sorted(rows[0]["preference"])
    assert len(models) == 9
    for model in models:
        outcomes = [row["preference"][model] - 1 for row in rows]
        found = judge([str(row["id"]) for row in rows], outcomes, seed=0, resamples=100, confidence=0.95)
        expected = published[model]
        assert round(100 * found.win_rate, 2) == round(expected["win_rate"], 2), model
        assert round(100 * found.standard_error, 2) == round(expected["standard_error"], 2), model
        assert (found.wins, found.ties, found.losses) == (
            expected["n_wins"], expected["n_draws"], expected["n_wins_base"]), model
        assert found.bootstrap_low < found.win_rate < found.bootstrap_high
        discrete = 100 * (found.wins + found.ties / 2) / found.prompts
        assert math.isclose(discrete, expected["discrete_win_rate"], abs_tol=0.005), model
