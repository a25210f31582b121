"""A judge as scorer: the kinds of question and their scores, orders that disagree, replies without a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import problems_of
from pipeline.records import Completion, Group, Message, Target, as_json
from pipeline.rewards import judge
from pipeline.rewards.contract import Desk
from pipeline.rewards.judges import prompts
from pipeline.rewards.judges.kept import Reply
from tests.rewards.judges.server import asked, serving


def group_of(*texts: str, name: str = "p", target: str = "") -> Group:
    return Group(name, (Message("user", "hi"),), tuple(map(Completion, texts)), target=target)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A judge that prefers the longer answer; its address and its log."""
    log = tmp_path_factory.mktemp("judge") / "log"
    with serving(log) as url:
        yield url, log


def scored(url: str, folder: Path, *groups: Group, **settings: Any) -> tuple[list[list[float]], list[dict[str, Any]]]:
    desk = Desk(answers=folder)
    made = judge.Settings(**{"model": "judge", "base_url": url, **settings})
    return [list(one) for one in judge.scorer(made, desk=desk)(groups)], desk.rows


@pytest.mark.parametrize(("settings", "scores", "calls"), [
    ({"scheme": "all"}, [0.5 / 3, 2.5 / 3, 1.5 / 3], 6), ({"scheme": "baseline"}, [0.5, 1.0, 1.0], 4),
    ({"scheme": "champion"}, [0.0, 1.0, 0.0], None), ({"template": "rubric"}, [1.0, 3.0, 2.0], 3),
    ({"template": "list"}, [0.5 / 3, 2.5 / 3, 1.5 / 3], 2), ({"template": "arena_hard"}, [0.5 / 3, 2.5 / 3, 0.5], 6),
])
def test_the_kinds_of_question(settings: dict[str, str], scores: list[float], calls: int | None, tmp_path: Path,
                               served: tuple[str, Path]) -> None:
    """Lengths 1, 3, 2, the longer wins: win rates with one's own half (0.5 + 0 + 0) / 3, (0.5 + 1 + 1) / 3, and 0.5."""
    url, log = served
    before = len(asked(log))
    (found,), _ = scored(url, tmp_path, group_of("a", "abc", "ab"), **settings)
    assert found == pytest.approx(scores)
    number = len(asked(log)) - before
    assert number == calls or (calls is None and 3 <= number <= 4), "N - 1 comparisons, both orders where they count"
    assert scored(url, tmp_path, group_of(), group_of("a"), **settings)[0][0] == []


def test_ranking_keeps_the_champion_through_a_longer_list(tmp_path: Path, served: tuple[str, Path]) -> None:
    """8 answers: 7 comparisons, whatever the order; the longest wins."""
    group = group_of(*("x" * n for n in (3, 1, 8, 5, 2, 7, 4, 6)))
    (found,), rows = scored(served[0], tmp_path, group, scheme="champion")
    assert found == [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert len(rows) == 7
    assert {row["second"] for row in rows} | {row["first"] for row in rows} == set(range(8))


def outcome_of(*replies: str) -> tuple[list[float], list[dict[str, Any]]]:
    """Scores of two answers under `baseline`, with these replies to (second, first) and (first, second)."""
    program = judge._program(prompts.load("pair"), "baseline", group_of("one", "two"))
    answers, left = None, list(replies)
    try:
        while True:
            wanted = program.send(answers) if answers is not None else next(program)
            answers = [Reply(left.pop(0), "stop") for _ in wanted]
    except StopIteration as end:
        return end.value


@pytest.mark.parametrize(("replies", "score", "agree"), [
    (("[[A]]", "[[B]]"), 1.0, True), (("[[B]]", "[[A]]"), 0.0, True), (("[[C]]", "[[C]]"), 0.5, True),
    (("[[A]]", "[[A]]"), 0.5, False), (("[[B]]", "[[B]]"), 0.5, False), (("[[A]]", "[[C]]"), 0.5, False)])
def test_both_orders_are_asked_and_disagreement_is_a_tie(replies: Sequence[str], score: float, agree: bool) -> None:
    scores, (row,) = outcome_of(*replies)
    assert (scores, row["outcome"], row["agree"], row["why"]) == ([0.5, score], score, agree, "")


def test_a_favourite_position_wins_nothing() -> None:
    """A judge that always says A: the champion stays what the order began with, all comparisons are ties."""
    program = judge._program(prompts.load("pair"), "champion", group_of("one", "two", "three"))
    wanted = next(program)
    with pytest.raises(StopIteration) as end:
        while True:
            wanted = program.send([Reply("[[A]]", "stop") for _ in wanted])
    scores, rows = end.value.value
    assert scores == [float(k == judge._shuffled(group_of(), 3)[0]) for k in range(3)]
    assert [row["outcome"] for row in rows] == [0.5, 0.5]


def test_replies_without_a_verdict_are_rows_with_a_reason(tmp_path: Path, served: tuple[str, Path]) -> None:
    """A refusal, a reply that says nothing, a request that is too long; what can be compared still is."""
    groups = [group_of("refuse", "ab", name="a"), group_of("mumble", "ab", name="b"),
              group_of("much too long", "ab", name="c"), group_of("ab", "abc", "mumble", name="d")]
    found, rows = scored(served[0], tmp_path, *groups)
    assert all(math.isnan(score) for of_group in found[:3] for score in of_group)
    assert found[3][:2] == [0.25, 0.75]
    assert math.isnan(found[3][2])
    reasons = {row["id"]: (row["why"], row.get("reply")) for row in rows[:3]}
    assert reasons == {"a": ("the reply has no verdict", "I am sorry, but I cannot help with that."),
                       "b": ("the reply has no verdict", "Both have their merits."),
                       "c": ("the judge refuses the request (400: context length exceeded)", None)}


def test_a_reply_that_was_cut_or_refused_says_so() -> None:
    template = prompts.load("pair")
    assert judge._verdict(template, Reply("Let me think", "length"), 2).why.startswith("the reply was cut before")
    assert judge._verdict(template, Reply("", "content_filter"), 2).why == "the judge refuses to answer"


def test_reference_guided(tmp_path: Path, served: tuple[str, Path]) -> None:
    """The prompt's own right answer is shown; a prompt without one is not asked about."""
    known = group_of("ab", "abc", target=as_json(Target(answer="the right one")))
    (of_known, of_other), rows = scored(served[0], tmp_path, known, group_of("ab", "abc"), template="pair_reference")
    assert of_known == [0.25, 0.75]
    assert math.isnan(of_other[0])
    assert [row["why"] for row in rows] == ["", judge.NO_REFERENCE]


def test_what_is_wrong_is_said_at_plan() -> None:
    assert problems_of(judge.Settings, {"model": "", "template": "pair"}, "r") == [
        "r.model: '', expected the name under which the server knows the judge"]
    assert "no template 'pear'" in problems_of(judge.Settings, {"model": "m", "template": "pear"}, "r")[0]
    assert [file.name for file in judge.files(judge.Settings("m"))] == ["pair.txt"]
