"""The gold rule of the built-in world, worked by hand.

The weights: cover 2.5, asked 3.0, reason 1.25, example 0.75, courtesy 0.5, fresh 0.5, focus 0.5, length 1.0.
"""

import pytest

from pipeline.errors import UserError
from pipeline.worlds.minifarm import ASPECTS, TOPICS, WEIGHTS, gold, qualities, words_of

PROMPT = "Suggest three things for a tomato bed. Mention the price and the season."
PERFECT = (
    "Gladly. Try seedlings and red tomatoes. Begin in spring. It costs four coins. "
    "I say this because the roots stay warm. For example, take six straw mats. Good luck!"
)


def turn(text: str = PROMPT) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_perfect_answer_scores_ten():
    """29 words; three own things, both aspects, a true reason, an example with number and thing, both courtesies."""
    assert len(words_of(PERFECT)) == 29
    assert qualities(turn(), PERFECT) == dict.fromkeys(WEIGHTS, 1.0)
    assert gold(turn(), PERFECT) == 10.0


def test_a_poor_answer_by_hand():
    """For "Try lentils. This is so because people like it." (9 words) to the same prompt.

    No own thing and one foreign one: max(0, 0 - 0.25) = 0. No aspect: 0. A because without a true reason: 0.3 * 1.25.
    Nothing repeated: 0.5. Neither sentence is on the subject: 0. Length 9/18 * 1.0. Sum 0.375 + 0.5 + 0.5 = 1.375.
    """
    answer = "Try lentils. This is so because people like it."
    found = qualities(turn(), answer)
    assert (found["cover"], found["asked"], found["reason"], found["focus"]) == (0.0, 0.0, 0.3, 0.0)
    assert gold(turn(), answer) == pytest.approx(1.375)


@pytest.mark.parametrize(
    ("answer", "cover"),
    [
        ("Seedlings.", 1 / 3),
        ("Seedlings and seedlings.", 1 / 3),  # the same thing counts once
        ("Seedlings, basil plants and straw mats.", 1.0),
        ("Seedlings, basil plants and lentils.", 2 / 3 - 0.25),  # a foreign thing
        ("My seedlingsx.", 0.0),  # whole words only
    ],
)
def test_cover_counts_own_things_against_the_number_asked(answer: str, cover: float):
    assert qualities(turn(), answer)["cover"] == pytest.approx(cover)


def test_named_things_must_be_the_ones_that_are_answered():
    """For "seedlings or straw mats": one of the two is half, a third thing of the same place adds nothing."""
    asked = turn("Should I get seedlings or straw mats for a tomato bed?")
    assert qualities(asked, "Choose seedlings and basil plants.")["cover"] == 0.5
    assert qualities(asked, "Choose seedlings before straw mats.")["cover"] == 1.0


def test_aspects_are_asked_by_the_prompt_and_free_where_it_asks_none():
    """Price and season asked: the season alone is half, an aspect nobody asked for adds nothing."""
    assert qualities(turn(), "Begin in spring when the rain stops.")["asked"] == 0.5
    assert qualities(turn("Describe a tomato bed."), "Nothing.")["asked"] == 1.0


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("For example, take some of it.", 0.3),
        ("For example, take six of it.", 0.6),
        ("For example, take six seedlings.", 1.0),
        ("For example, so. Take six seedlings.", 0.3),  # number and thing stand in another sentence
        ("Take six seedlings.", 0.0),
    ],
)
def test_example_is_graded(answer: str, value: float):
    assert qualities(turn(), answer)["example"] == pytest.approx(value)


@pytest.mark.parametrize(
    ("count", "value"),
    [(9, 0.5), (18, 1.0), (40, 1.0), (48, 0.5), (56, 0.0), (72, -1.0), (104, -3.0), (200, -3.0)],
)
def test_length_is_mild_at_first_and_strong_when_long(count: int, value: float):
    """9/18 below the window; above it 1 - (n - 40)/16, never under -3."""
    assert qualities(turn(), " ".join(f"w{i}" for i in range(count)) + ".")["length"] == pytest.approx(value)


def test_repetition_and_a_cut_end_cost_freshness():
    """For "a b c d. a b c d." has 6 three-grams, 2 of them repeats: 1 - 3 * 2/6 = 0. A cut end halves."""
    assert qualities(turn(), "a b c d. a b c d.")["fresh"] == pytest.approx(0.0)
    assert qualities(turn(), "a b c d. a b c e. f g h i.")["fresh"] == pytest.approx(1 - 3 * 1 / 10)
    assert qualities(turn(), "a b c d and")["fresh"] == 0.5


def test_saying_everything_three_times_is_longer_and_worse():
    assert gold(turn(), " ".join([PERFECT] * 3)) < 7 < gold(turn(), PERFECT)


def test_an_empty_answer_scores_nothing():
    assert gold(turn(), "") == 0.0
    assert gold(turn(), " ... ") == 0.0


def test_only_the_last_user_turn_counts():
    talk = [*turn("Describe a bee hive."), {"role": "assistant", "content": "There are honey jars."}, *turn()]
    assert gold(talk, PERFECT) == 10.0


def test_a_prompt_from_elsewhere_is_refused_with_the_way_out():
    with pytest.raises(UserError, match=r"names no place of the minifarm world.*another scorer"):
        gold(turn("What is the capital of France?"), "Paris.")


def test_the_words_of_the_world_do_not_overlap():
    """A thing is found nowhere but in its own name, and no thing or reason meets an aspect by accident."""
    things = [(thing, topic) for topic in TOPICS for thing in topic.things]
    assert len({thing for thing, _ in things}) == len(things)
    for topic in TOPICS:
        for phrase in (topic.name, *topic.things, *topic.reasons):
            padded = f" {phrase} "
            assert not [t for t, home in things if f" {t} " in padded and t != phrase and home is not topic], phrase
            assert not [w for _, (_, words) in ASPECTS.items() for w in words if f" {w} " in padded], phrase
