"""What samples tell of a policy that has collapsed."""

from __future__ import annotations

from pipeline.engines.tally import Tally
from pipeline.records import Completion


def seen(*prompts: list[Completion]) -> Tally:
    tally = Tally()
    for completions in prompts:
        tally.completions += len(completions)
        tally.look(completions)
    return tally


def samples(*texts: str, ids: tuple[int, ...] = (1, 2, 3), temperature: float = 0.7) -> list[Completion]:
    return [Completion(text, ids, temperature=temperature) for text in texts]


def test_empty_samples_are_those_without_a_letter():
    tally = seen(*[samples("", " \n", "x", "")] * 4)
    assert (tally.completions, tally.empty) == (16, 12)
    assert tally.collapsed(0.75) == []
    (said,) = tally.collapsed(0.7)
    assert "max_collapsed_share: 12 of 16 samples are empty, allowed is a share of 0.7" in said


def test_one_token_over_and_over_is_nine_tenths_of_eight_or_more():
    """9 of 10 tokens alike, the last one the stop token; not 8 of 10, and not 7 of 7."""
    repeats = samples("a", "b", ids=(5,) * 9 + (0,))
    others = [*samples("a", ids=(5,) * 8 + (6, 0)), *samples("b", ids=(5,) * 7)]
    tally = seen(*[repeats] * 4, others)
    assert (tally.repeated, tally.completions) == (8, 10)
    (said,) = tally.collapsed(0.7)
    assert "8 of 10 samples repeat one token" in said and tally.collapsed(0.8) == []


def test_samples_are_alike_where_several_were_drawn_at_random():
    """A single sample, and greedy ones, have nothing to differ from."""
    tally = seen(*[samples("a", "a")] * 7, samples("a", "b"), samples("a"), samples("a", "a", temperature=0.0))
    assert (tally.several, tally.alike) == (8, 7)
    (said,) = tally.collapsed(0.8)
    assert "7 of 8 prompts have samples that are all the same" in said
    assert seen(*[samples("a", "a")] * 7).collapsed(0.8) == []  # too few to say


def test_tallies_add_up():
    one, other = seen(*[samples("", "")] * 3), seen(samples("x", "y"))
    both = one + other
    assert (both.empty, both.several, both.alike, both.repeated) == (6, 4, 3, 0)
