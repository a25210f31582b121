"""Codes against each other's tests, really run, and the pair that DSTC makes of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pipeline.code import code_and_tests
from pipeline.config import load_part
from pipeline.records import Completion, Group, Message
from pipeline.rewards import cross_tests, unit_tests
from pipeline.rewards.contract import Desk, Limits
from pipeline.selection import minimax
from pipeline.selection.contract import Rule

RIGHT = "def add(a, b):\n    return a + b"
ANSWERS = (
    f"Sure.\n```python\n{RIGHT}\n\nassert add(1, 2) == 3\n```\nDone.",
    "```python\ndef add(a, b):\n    return 3\nassert add(0, 0) == 0\n```",  # fails its own test
    "```python\ndef add(a, b):\n    return a - b\nassert add(2, 0) == 2\n```",
    "I cannot write code.",
)


def group_of(*texts: str) -> Group:
    return Group("p", (Message("user", "Write add, and a test."),),
                 tuple(Completion(text, (7,), sample=k) for k, text in enumerate(texts)), (1, 5))


def test_code_and_tests() -> None:
    """Asserts outside of functions are tests, wherever they stand; one inside is code. What is no Python has none."""
    text = "x = 1\nassert x == 1\ndef f():\n    assert x\nassert (f()\n        is None)"
    assert code_and_tests(text) == ("x = 1\ndef f():\n    assert x", "assert x == 1\nassert f() is None")
    assert code_and_tests("I cannot.") == ("I cannot.", "")
    assert code_and_tests("") == ("", "")


needs_a_jail = pytest.mark.skipif(bool(unit_tests.check(unit_tests.Settings(), Limits())),
                                  reason="this system does not let code be shut in")


@needs_a_jail
def test_every_code_against_every_test() -> None:
    """Tests: add(1, 2) == 3, add(0, 0) == 0, add(2, 0) == 2. a + b passes all, 3 the first, a - b the last two, and
    words none: shares 1, 1/3, 2/3, 0, and bits 0b111, 0b001, 0b110, 0.
    """
    (found,) = cross_tests.scorer(cross_tests.Settings(), desk=Desk())([group_of(*ANSWERS)])
    assert [one[""] for one in found] == [1.0, pytest.approx(1 / 3), pytest.approx(2 / 3), 0.0]
    assert [one["_passed"] for one in found] == [7.0, 1.0, 6.0, 0.0]
    desk = Desk()
    ((none,),) = cross_tests.scorer(cross_tests.Settings(), desk=desk)([group_of(ANSWERS[3])])
    assert math.isnan(none[""])
    assert desk.rows == [{"id": "p", "k": 0, "why": "no answer to the prompt ends with a test"}]


@needs_a_jail
def test_a_test_that_never_ends_costs_its_own_pairs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_tests, "_START_SECONDS", 1.0)
    looping = "```python\ndef add(a, b):\n    return a + b\nassert all(True for _ in iter(int, 1))\n```"
    (found,) = cross_tests.scorer(cross_tests.Settings(seconds=1), desk=Desk())([group_of(ANSWERS[0], looping)])
    assert [one["_passed"] for one in found] == [1.0, 1.0]


def scored(shares: list[float], passed: list[int], texts: tuple[str, ...] = ANSWERS) -> Group:
    group = group_of(*texts)
    return replace(group, completions=tuple(
        replace(c, scores={"reward": share, "reward_passed": float(bits)})
        for c, share, bits in zip(group.completions, shares, passed, strict=True)))


def test_the_hardest_test_that_is_passed_and_the_easiest_that_is_failed() -> None:
    """Codes that pass test 0, 1, 2: 2, 2, 3 of 4. The first passes all; the hardest is test 0, the earlier of equals.
    The last passes test 2 alone; of those it fails, the easier is test 0, the earlier of equals.
    """
    group = scored([1.0, 2 / 3, 2 / 3, 1 / 3], [0b111, 0b101, 0b010, 0b100])
    ((pair,), reason) = minimax.select(group, minimax.Settings())
    assert reason == ""
    assert [c.text for c in pair.completions] == [
        f"```python\n{code}\n\nassert add(1, 2) == 3\n```" for code in (RIGHT, "I cannot write code.")]
    assert [(c.token_ids, c.sample) for c in pair.completions] == [((), 0), ((), 3)]
    assert pair.prompt_ids == ()


def test_tests_of_different_hardness() -> None:
    """Test 1 is passed by the first alone, test 0 by three: chosen with test 1. The last fails 0 and 1: with test 0."""
    group = scored([1.0, 2 / 3, 2 / 3, 1 / 3], [0b111, 0b101, 0b101, 0b100])
    ((pair,), _) = minimax.select(group, minimax.Settings())
    assert [c.text.split("\n")[-2] for c in pair.completions] == ["assert add(0, 0) == 0", "assert add(1, 2) == 3"]


@pytest.mark.parametrize(("shares", "passed"), [
    ([1.0, 1.0, 1.0, 1.0], [7, 7, 7, 7]), ([0.0, 0.0, 0.0, 0.0], [0, 0, 0, 0])])
def test_no_pair_where_no_test_separates(shares: list[float], passed: list[int]) -> None:
    assert minimax.select(scored(shares, passed), minimax.Settings()) == ([], "no_test_separates")


def test_what_it_asks_for() -> None:
    part = load_part({"module": "pipeline.selection.minimax"}, "selection", Rule)
    assert (part.of(part.plugin.reads), part.of(part.plugin.asks)) == (("reward",), ("reward_passed",))
