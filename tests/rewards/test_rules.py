"""Built-in rules: repetition, length, form, maths, multiple choice, IFEval's instructions."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.config import problems_of
from pipeline.evaluation import diversity
from pipeline.records import Completion, Group, Message, Target, as_json
from pipeline.rewards import choice, ifeval, length, maths, pattern, repeats, repetition, unigram_f1
from pipeline.rewards.contract import Desk

DATA = Path(os.environ.get("ALIGNLOOP_TEST_DATA", "nowhere"))


def group_of(*texts: str, target: Target | None = None) -> Group:
    return Group("p", (Message("user", "hi"),), tuple(map(Completion, texts)), target=as_json(target) if target else "")


def scores(module: ModuleType, *groups: Group, **settings: Any) -> list[list[float]]:
    made = module.Settings(**settings)
    more = {"desk": Desk()} if module.SCORER.desk else {}
    return [list(of_group) for of_group in module.scorer(made, **more)(groups)]


def test_repetition() -> None:
    """Bigrams of "a b a b a": ab ba ab ba, 2 of 4 fresh; words of "x x x x": 1 of 4; too short for one: 1."""
    assert scores(repetition, group_of("a b a b a", "a"), n=2) == [[0.5, 1.0]]
    assert scores(repetition, group_of("x x x x", ""), n=1) == [[0.25, 1.0]]


def test_repeats_counts_what_prompt_or_answer_hold_already() -> None:
    """3-grams of the first answer: 123 and 234 stand in the prompt, 345 is new, 451 is new, 512 is new, 123 again: 3.
    Of 7 7 7 7 7: three times 777, of which two are repeats. Nothing of two tokens repeats.
    """
    prompt, answers = (9, 1, 2, 3, 4), ((1, 2, 3, 4, 5, 1, 2, 3), (7, 7, 7, 7, 7), (1, 2))
    group = Group("p", (Message("user", "hi"),), tuple(Completion("", ids) for ids in answers), prompt)
    assert scores(repeats, group) == [[-3.0, -2.0, 0.0]]
    assert diversity.repeats([(prompt, ids) for ids in answers]).either == pytest.approx(5 / 3)


def test_unigram_f1_by_hand() -> None:
    """ "The cat, a black cat!" is cat black cat; wanted: black cats sat, cat. Common: cat and black, of 3 and 4 words:
    2 * 2 / 7. "it's" becomes it and s, as in ParlAI. Nothing in common, or nothing at all: 0.
    """
    group = group_of("The cat, a black cat!", "IT S", "An a the", target=Target(answer="black cats sat, cat"))
    assert scores(unigram_f1, group) == [[pytest.approx(4 / 7), 0.0, 0.0]]
    assert unigram_f1.f1("it's", "It s") == 1.0
    assert math.isnan(scores(unigram_f1, group_of("x"))[0][0])


def test_length() -> None:
    """4 words wanted at least, 8 at most: 2 are half of 4, 16 twice 8."""
    texts = ("a b", "a b c d", "a " * 8, "a " * 16, "")
    assert scores(length, group_of(*texts), low=4, high=8) == [[0.5, 1.0, 1.0, 0.5, 0.0]]
    assert scores(length, group_of("abcd"), high=2, unit="characters") == [[0.5]]
    assert problems_of(length.Settings, {"low": 5, "high": 4}, "r") == ["r.high: 4 is below low, 5"]


def test_form(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}))
    texts = ('{"n": 1}', 'Here:\n```json\n{"n": 2}\n```', '{"n": "x"}', "[1]", "n")
    assert scores(pattern, group_of(*texts), json=True) == [[1.0, 1.0, 1.0, 1.0, 0.0]]
    assert scores(pattern, group_of(*texts), schema=str(schema)) == [[1.0, 1.0, 0.0, 0.0, 0.0]]
    assert scores(pattern, group_of(*texts), regex=r"\An\Z") == [[0.0, 0.0, 0.0, 0.0, 1.0]]
    assert pattern.SCORER.files(pattern.Settings(schema=str(schema))) == [schema]
    schema.write_text('{"type": "objekt"}')
    wrong = [problems_of(pattern.Settings, given, "r")[0] for given in (
        {}, {"regex": "("}, {"schema": "nowhere.json"}, {"schema": str(schema)})]
    assert [problem.partition(" (")[0] for problem in wrong] == [
        "r.regex: null with json=false and schema=null asks for nothing, set one of them",
        "r.regex: '(' is no regular expression", "r.schema: no file 'nowhere.json', expected a JSON schema",
        f"r.schema: {schema} is no JSON schema"]


@pytest.mark.parametrize(("text", "right", "score"), [
    ("He pays 3 * 5 = 15, so 20 - 15 = 5.\n#### 5", "5", 1.0), ("So it is 1,234.50 $.", "1234.5", 1.0),
    ("The answer is **$18.00**.", "18", 1.0), (r"Thus \boxed{\frac{1}{2}}, not 3.", "0.5", 1.0),
    ("It costs 5 dollars, not 6", "5", 0.0), ("None", "5", 0.0), (r"\boxed{x + 1}", "x+1", 1.0), ("-3", "-3", 1.0),
    ("First I thought the answer is 4. Then: the final answer is 7. I used 2 steps.", "7", 1.0),
    ("The answer is 3/4.", "0.75", 1.0), ("50%", "50", 1.0), ("Answer: Paris", "paris", 1.0), ("1/0", "1", 0.0),
])
def test_maths(text: str, right: str, score: float) -> None:
    assert scores(maths, group_of(text, target=Target(answer=right))) == [[score]]


def test_maths_that_must_be_marked_and_a_prompt_without_an_answer() -> None:
    target = Target(answer="She has 2 left.\n#### 2")
    assert scores(maths, group_of("2", "#### 2", r"\boxed{2}", target=target), where="marked") == [[0.0, 1.0, 1.0]]
    desk = Desk()
    (found,) = maths.scorer(maths.Settings(), desk=desk)([group_of("2", "3")])
    assert all(map(math.isnan, found))
    assert desk.rows == [{"id": "p", "k": k, "why": "the prompt has no target.answer"} for k in (0, 1)]


@pytest.mark.parametrize(("text", "letter"), [
    ("The answer is (B).", "B"), ("B", "B"), ("B. the moon", "B"), ("I think it's the moon", "B"), ("answer: C", "C"),
    ("Answer is A because A Dog is", "A"), ("A dog barks", None), (r"\boxed{C}", "C"), ("the sun or the moon", None),
    ("Option (C) it is", "C"), ("The answer is D", None),
])
def test_multiple_choice(text: str, letter: str | None) -> None:
    target = Target(answer="B", choices=("the sun", "the moon", "a star"))
    assert choice.letter(text, target.choices) == letter
    assert scores(choice, group_of(text, target=target)) == [[float(letter == "B")]]


CASES: Sequence[tuple[str, dict[str, Any], str, str]] = [  # id, kwargs, an answer that follows, one that does not
    ("keywords:existence", {"keywords": ["Cat", "dog"]}, "a cat, a dog", "a cat"),
    ("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "less than"}, "a", "a a"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "category", "a Cat"),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "at least"}, "Qq", "q"),
    ("language:response_language", {"language": "hi"}, "नमस्ते दुनिया", "hello"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, "One. Two!", "One"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo", "one\n\ntwo"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "one two", "one two three"),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"},
     "One.\n\nSo, two.", "So one.\n\nTwo."),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] [place]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP. S. More", "Bye."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n- two", "* one\n** two"),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* *two*", "*one* **"),
    ("detectable_format:multiple_sections", {"section_spliter": "Part", "num_sections": 2}, "Part 1\nPart 2", "Part"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<A poem>>\nRoses", "<<>> Roses"),
    ("combination:two_responses", {}, "one ****** two", "one ****** one"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, "say hi. Hi!", "Hi!"),
    ("startend:end_checker", {"end_phrase": "the end"}, 'This is "The end"', "The end?"),
    ("startend:quotation", {}, '"yes"', '"'),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "GO ON now", "GO"),
    ("change_case:english_capital", {}, "HELLO, 1", "Hello"),
    ("change_case:english_lowercase", {}, "hello", "Hello"),
    ("punctuation:no_comma", {}, "no", "no, yes"),
]


@pytest.mark.parametrize(("name", "kwargs", "good", "bad"), CASES, ids=[case[0] for case in CASES])
def test_instructions(name: str, kwargs: dict[str, Any], good: str, bad: str) -> None:
    target = Target(instructions=({"id": name, "kwargs": {**kwargs, "unused": None}},))
    assert scores(ifeval, group_of(good, bad, "", target=target)) == [[1.0, 0.0, 0.0]]


def test_every_kind_of_instruction_has_its_case() -> None:
    assert {case[0] for case in CASES} == ifeval.CHECKS.keys()
    assert len(CASES) == 25


def test_several_instructions_shares_and_looseness() -> None:
    """Of two one is followed. Without its first line the answer is all lower case: loose."""
    target = Target(instructions=({"id": "punctuation:no_comma"}, {"id": "change_case:english_lowercase"}))
    group = group_of("Hello there", "Sure:\nhello", "hello", target=target)
    assert scores(ifeval, group) == [[0.5, 0.5, 1.0]]
    assert scores(ifeval, group, score="all") == [[0.0, 0.0, 1.0]]
    assert scores(ifeval, group, score="all", loose=True) == [[0.0, 1.0, 1.0]]


@pytest.mark.parametrize(("instruction", "why"), [
    ({"id": "punctuation:no_dots"}, "there is no check of the instruction 'punctuation:no_dots'"),
    ({"id": "punctuation:no_comma", "kwargs": {"n": 1}}, "punctuation:no_comma has other kwargs than IFEval's"),
    ({"id": "language:response_language", "kwargs": {"language": "de"}}, "language de cannot be told from its script"),
])
def test_an_instruction_that_cannot_be_checked_is_a_row_with_a_reason(instruction: dict[str, Any], why: str) -> None:
    desk = Desk()
    (found,) = ifeval.scorer(ifeval.Settings(), desk=desk)([group_of("a", target=Target(instructions=(instruction,)))])
    assert math.isnan(found[0])
    assert why in desk.rows[0]["why"]


@pytest.mark.skipif(not (DATA / "gsm8k").is_dir(), reason="ALIGNLOOP_TEST_DATA names no folder with gsm8k")
def test_gsm8k_solutions_are_right_and_those_of_the_next_row_are_mostly_not() -> None:
    (file,) = sorted((DATA / "gsm8k").glob("*test*.jsonl"))[:1]
    rows = [json.loads(line) for line in file.read_text().splitlines()][:500]
    targets = [Target(answer=row["answer"].rpartition("####")[2].strip()) for row in rows]
    own = scores(maths, *(group_of(row["answer"], target=target) for row, target in zip(rows, targets, strict=True)))
    others = scores(maths, *(group_of(row["answer"], target=target)
                             for row, target in zip(rows[1:], targets, strict=False)))
    assert {score for (score,) in own} == {1.0}
    assert sum(score for (score,) in others) < 0.1 * len(others)


@pytest.mark.skipif(not (DATA / "ifeval-single").is_dir(), reason="ALIGNLOOP_TEST_DATA names no folder ifeval-single")
def test_every_instruction_of_real_rows_can_be_checked() -> None:
    lines = (DATA / "ifeval-single" / "ifeval_single.jsonl").read_text().splitlines()
    found = [ifeval.follows({"id": name, "kwargs": kwargs}, row["prompt"]) for row in map(json.loads, lines)
             for name, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True)]
    assert len(found) == 266
    assert {one for one in found if isinstance(one, str)} == {"the language sw cannot be told from its script"}
