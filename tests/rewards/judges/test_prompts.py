"""Templates of judges: what is shown, what a reply means, and what is no template."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.records import Group, Message
from pipeline.rewards.judges import prompts
from pipeline.rewards.judges.prompts import FOLDER, LISTWISE, PAIRWISE, RUBRIC, Template

GROUP = Group("p", (Message("user", "Why {answer}?"),))


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.txt")))
def test_each_of_ours_shows_the_question_and_every_answer_once(name: str) -> None:
    """Braces in what is shown are no places, and the judge is told its verdict's form."""
    template = prompts.load(name)
    answers = {RUBRIC: ["first {reference}"], PAIRWISE: ["first {reference}", "second"],
               LISTWISE: ["first {reference}", "second", "third"]}[template.asks]
    shown = prompts.messages(template, GROUP, answers, "the reference")
    text = "\n".join(turn["content"] for turn in shown)
    assert [turn["role"] for turn in shown] == ["system", "user"]
    assert [text.count(one) for one in ("Why {answer}?", *answers)] == [1] * (1 + len(answers))
    assert text.count("the reference") == template.wants_reference == name.endswith("reference")
    assert "[[" in text


def test_a_conversation_is_shown_with_its_roles() -> None:
    group = Group("p", tuple(Message(role, text) for role, text in (("system", "Be brief."), ("user", "Hi"),
                                                                     ("assistant", "Hello"), ("user", "Why?"))))
    assert prompts.conversation(group) == "system: Be brief.\n\nuser: Hi\n\nassistant: Hello\n\nuser: Why?"


@pytest.mark.parametrize(("asks", "reply", "means"), [
    (PAIRWISE, "[[A]]", 1.0), (PAIRWISE, "I first thought [[A]]. No: [[B]]", 0.0), (PAIRWISE, "[[ c ]]", 0.5),
    (PAIRWISE, "[[A>>B]]", 1.0), (PAIRWISE, "[[B > A]]", 0.0), (PAIRWISE, "[[A=B]]", 0.5), (PAIRWISE, "[[tie]]", 0.5),
    (PAIRWISE, "A is better", None), (PAIRWISE, "[[both]]", None), (PAIRWISE, "", None),
    (RUBRIC, "[[7.5]]", 7.5), (RUBRIC, "[[8/10]]", 8.0), (RUBRIC, "[[11]]", None), (RUBRIC, "[[good]]", None),
    (LISTWISE, "[[2 > 1 = 3]]", [1, 0, 1]), (LISTWISE, "[[3>2>1]]", [2, 1, 0]), (LISTWISE, "[[2 > 1]]", None),
    (LISTWISE, "[[1 > 1 > 2]]", None), (LISTWISE, "[[1 > 2 > 4]]", None),
])
def test_what_a_reply_means(asks: str, reply: str, means: object) -> None:
    assert prompts.verdict(Template(asks, ()), reply, 3) == means


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    """`verdict` finds the number elsewhere; what it says lies in `range`."""
    file = tmp_path / "mine.txt"
    file.write_text("asks: rubric\nrange: 0 1\nverdict: \\[RESULT\\] (\\S+)\n[user]\nGrade {answer} of {conversation}")
    template = prompts.load(str(file))
    assert prompts.messages(template, GROUP, ["that"]) == [
        {"role": "user", "content": "Grade that of Why {answer}?"}]
    assert prompts.verdict(template, "Fine. [RESULT] 0.25", 1) == 0.25


@pytest.mark.parametrize(("text", "problem"), [
    ("[user]\n{conversation} {answer}", "asks: missing, expected a line asks: rubric, pairwise, listwise"),
    ("asks: pairwise\n[user]\n{conversation} {answer_a}", r"\{answer_b\} stand in no turn"),
    ("asks: rubric\n{conversation} {answer}", r"\{conversation\} and \{answer\} stand in no turn, which begins"),
    ("asks: rubric\nverdict: no bracket\n[user]\n{conversation} {answer}", "a regular expression with a bracket"),
])
def test_what_is_no_template(text: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(text)
    with pytest.raises(UserError, match=problem):
        prompts.load(str(file))
    with pytest.raises(UserError, match=r"no template 'par' \(did you mean pair"):
        prompts.load("par")
