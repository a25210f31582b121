"""A rule: found by its dotted path, called with the conversation, checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import load_part, problems_of, settled
from pipeline.errors import UserError
from pipeline.records import Completion, Group, Message
from pipeline.rewards import rule
from pipeline.rewards.contract import Scorer

GROUP = Group("p", (Message("system", "be kind"), Message("user", "hi")),
              (Completion("a b c a b c"), Completion("one two three four")))


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Write a user's module and return its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def test_fresh_trigrams() -> None:
    """Of abc bca cab abc three are new in four: 3/4; the other has no repetition; two words have no 3-gram."""
    scores = rule.scorer(rule.Settings("pipeline.rewards.rule.fresh_trigrams"))([GROUP])
    assert scores == [[0.75, 1.0]]
    assert rule.fresh_trigrams([], "a b") == 1.0


def test_a_users_own_function(own_module: Callable[[str, str], str]) -> None:
    name = own_module("rules_of_a_user", "def count(messages, text):\n"
                      "    return len(messages) * 100 + len(messages[-1]['content']) * 10 + len(text.split())\n")
    settings = rule.Settings(f"{name}.count")
    assert rule.scorer(settings)([GROUP, Group("q", (Message("user", "x"),))]) == [[226.0, 224.0], []]
    assert [path.name for path in rule.files(settings)] == ["rules_of_a_user.py"]  # part of the key
    assert not settled(rule.SCORER.needs_model, settings)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("no_such_module_here.f", "cannot import 'no_such_module_here'"),
        ("pipeline.rewards.rule.nothing", "has no function 'nothing'"),
        ("pipeline.rewards.rule.Rule", "has no function 'Rule'"),
        ("alone", "is no dotted path"),
    ],
)
def test_an_unusable_path_is_found_while_planning(path: str, problem: str) -> None:
    (found,) = problems_of(rule.Settings, {"function": path}, "reward.scorer")
    assert found.startswith("reward.scorer.function: ")
    assert problem in found


def test_a_rule_that_returns_no_number(own_module: Callable[[str, str], str]) -> None:
    name = own_module("rules_without_result", "def f(messages, text):\n    pass\n")
    with pytest.raises(UserError, match=r"rules_without_result.f: returned None for 'p', expected a number"):
        rule.scorer(rule.Settings(f"{name}.f"))([GROUP])


def test_it_plugs_in_by_its_module() -> None:
    spec = {"module": "pipeline.rewards.rule", "function": "pipeline.rewards.rule.fresh_trigrams"}
    part = load_part(spec, "reward", Scorer)
    assert part.settings.function == "pipeline.rewards.rule.fresh_trigrams"
