"""Log-probs of pairs and around their first difference, by hand."""

import pytest

from pipeline.evaluation.logprobs import PairLogps, around_first_difference, by_place, first_difference, summarise

# chosen 5 6 7, rejected 5 8 9 2: they differ from token 1 on
PAIR = PairLogps(
    (5, 6, 7), (5, 8, 9, 2), [-0.1, -1.0, -0.4], [-0.1, -3.0, -0.5, -0.2], [-0.2, -0.8, -0.2], [-0.2, -2.0, -0.5, -0.3])


def test_first_difference():
    assert first_difference((1, 2, 3), (1, 2, 4)) == 2
    assert first_difference((1, 2), (1, 2, 4)) == 2
    assert first_difference((), (1,)) == 0


def test_summary_by_hand():
    """chosen -1.5 against -1.2 under the reference: it lost 0.3; rejected -3.8 against -3.0: it lost 0.8. Margin 0.5.
    Mean token log-probs: -0.5 > -0.95, so the preferred answer ranks first; its log-ratio is the larger one too."""
    found = summarise([PAIR])
    assert (found.chosen_logp, found.rejected_logp) == pytest.approx((-1.5, -3.8))
    assert (found.chosen_log_ratio, found.rejected_log_ratio, found.margin) == pytest.approx((-0.3, -0.8, 0.5))
    assert (found.chosen_less_likely, found.ranking_accuracy, found.implicit_accuracy) == (1.0, 1.0, 1.0)


def test_ranking_is_by_mean_and_implicit_reward_by_sum():
    """Chosen: two tokens of -1 (mean -1). Rejected: one of -1.5. The mean prefers chosen, though its sum is lower."""
    pair = PairLogps((1, 2), (3,), [-1.0, -1.0], [-1.5], [-1.0, -1.0], [-2.0])
    found = summarise([pair])
    assert (found.ranking_accuracy, found.implicit_accuracy, found.reference_ranking_accuracy) == (1.0, 0.0, 1.0)


def test_curve_by_hand():
    rows = around_first_difference([PAIR], window=2)
    assert [(row["offset"], row["chosen"], row["rejected"]) for row in rows] == [
        (-1, -0.1, -0.1), (0, -1.0, -3.0), (1, -0.4, -0.5)]
    assert rows[1]["rejected_reference"] == -2.0
    assert [row["offset"] for row in around_first_difference([PAIR], window=0)] == [0]


def test_offsets_average_over_the_pairs_that_reach_them():
    """The second pair differs at token 0 and has one token: it counts at offset 0 alone. (-1.0 - 2.0) / 2 = -1.5."""
    short = PairLogps((1,), (2,), [-2.0], [-4.0], [-1.0], [-1.0])
    rows = {row["offset"]: row for row in around_first_difference([PAIR, short], window=8)}
    assert (rows[0]["pairs"], rows[0]["chosen"], rows[0]["rejected"]) == (2, -1.5, -3.5)
    assert rows[1]["pairs"] == 1


def test_the_distance_of_pairs_is_that_of_their_tokens():
    """(1, 2) to (1, 3): one of two; (1,) to (1, 5, 6): two of three. The mean is 7/12."""
    pairs = [PairLogps((1, 2), (1, 3), [0, 0], [0, 0], [0, 0], [0, 0]),
             PairLogps((1,), (1, 5, 6), [0], [0, 0, 0], [0], [0, 0, 0])]
    assert summarise(pairs).edit_distance == pytest.approx(7 / 12)


def test_places_by_hand():
    """Before: token 0. At: token 1. After: the rest, two tokens of the rejected answer: (-0.5 - 0.2) / 2 = -0.35."""
    found = by_place([PAIR])
    assert found["before"]["chosen"] == found["before"]["rejected"] == -0.1
    assert (found["at"]["chosen"], found["at"]["rejected"]) == (-1.0, -3.0)
    assert (found["after"]["chosen"], found["after"]["rejected"]) == pytest.approx((-0.4, -0.35))
    assert by_place([PairLogps((1,), (2,), [-2.0], [-4.0], [-1.0], [-1.0])])["before"]["chosen"] is None
