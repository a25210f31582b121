"""Every shape of row: what it gives, what it refuses, what it leaves out, and that a newcomer's file is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.formats import files, hh, shapes
from pipeline.formats.contract import Example, Left, Shape
from pipeline.formats.shapes import pairs
from pipeline.records import Target

U, A, S = "user", "assistant", "system"
HH = "\n\nHuman: Hi there\n\nAssistant: Hello\n\nHuman: And you?\n\nAssistant:"
ALPACA = ("Below is an instruction that describes a task. Write a response.\n\n### Instruction:\nAdd them.\n\n"
          "### Input:\n1 2\n\n### Response:\n")


def shape(row: dict[str, Any]) -> tuple[Shape, tuple[str, ...]]:
    found = files.shape_of(tuple(key for key, value in row.items() if value is not None), tuple(row))
    assert found is not None
    return found


def read(row: dict[str, Any], **settings: Any) -> list[Example]:
    made = list(shape(row)[0].read(row, files.Settings(**settings)))
    assert not any(isinstance(one, Left) for one in made)
    return made  # type: ignore[return-value]


def turns(*texts: str, first: str = U) -> list[dict[str, str]]:
    roles = (U, A) if first == U else (S, U, A)
    return [{"role": roles[i % 2] if first == U else roles[i], "content": text} for i, text in enumerate(texts)]


def said(example: Example) -> tuple[list[str], list[str]]:
    return [m.content for m in example.prompt], [m.content for m in example.answers]


@pytest.mark.parametrize(("row", "prompt", "answers"), [
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, ["q"], ["a", "b"]),
    ({"question": "q", "chosen": "a", "rejected": "b", "system": "Be brief."}, ["Be brief.", "q"], ["a", "b"]),
    ({"chosen": turns("q", "a"), "rejected": turns("q", "b")}, ["q"], ["a", "b"]),
    ({"prompt": "q", "chosen": turns("q", "a"), "rejected": turns("q", "b")}, ["q"], ["a", "b"]),
    ({"prompt": "q ", "chosen": turns("q", "a"), "rejected": turns("q\n", "b")}, ["q "], ["a", "b"]),
    ({"prompt": "q", "chosen": turns("s", "q", "a", first=S), "rejected": turns("s", "q", "b", first=S)}, ["s", "q"],
     ["a", "b"]),
    ({"prompt": turns("q", "x", "r"), "chosen": [{"role": A, "content": "a"}], "rejected": "b"}, ["q", "x", "r"],
     ["a", "b"]),
    ({"chosen": f"{HH} a", "rejected": f"{HH} b"}, ["Hi there", "Hello", "And you?"], ["a", "b"]),
    ({"prompt": HH, "chosen": "a", "rejected": "b"}, ["Hi there", "Hello", "And you?"], ["a", "b"]),
    ({"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"},
      "rejected": {"from": "gpt", "value": "b"}}, ["q"], ["a", "b"]),
    ({"instruction": "i", "input": "more", "chosen": "a", "rejected": "b"}, ["i\n\nmore"], ["a", "b"]),
    ({"prompt": [{"role": U, "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "r"}]}], "chosen": "a",
      "rejected": "b"}, ["qr"], ["a", "b"]),
])
def test_pairs(row, prompt, answers):
    (example,) = read(row)
    assert shape(row)[0].name == "pairs"
    assert said(example) == (prompt, answers)


@pytest.mark.parametrize(("row", "prompt", "answer"), [
    ({"prompt": "q", "completion": "a"}, ["q"], "a"),
    ({"prompt": ALPACA, "response": "3"}, ["Add them.\n\n1 2"], "3"),
    ({"instruction": "i", "input": "<noinput>", "output": "a"}, ["i"], "a"),
    ({"instruction": "i", "output": "a", "history": [["x", "y"]]}, ["x", "y", "i"], "a"),
    ({"messages": turns("q", "a", "r", "b")}, ["q", "a", "r"], "b"),
    ({"messages": [*turns("q", "a"), {"role": U, "content": "r"}, {"role": A, "content": "b", "train": False}]}, ["q"],
     "a"),
    ({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"},
                        {"from": "gpt", "value": "a"}]}, ["s", "q"], "a"),
    ({"prompt": "how many?", "answer": 42}, ["how many?"], "42"),
])
def test_demonstrations(row, prompt, answer):
    (example,) = read(row)
    assert shape(row)[0].name == "demonstrations"
    assert said(example) == (prompt, [answer])


def test_tools_of_sharegpt():
    row = {"tools": '[{"name": "f"}]', "conversations": [
        {"from": "human", "value": "q"}, {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "2"}, {"from": "gpt", "value": "It is 2."}]}
    (example,) = read(row)
    assert [m.role for m in example.prompt] == [U, A, "tool"]
    call = {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}
    assert json.loads(example.prompt[1].more) == call


def test_every_answer_of_a_conversation_and_every_instance():
    row = {"messages": turns("q", "a", "r", "b")}
    assert [said(one) for one in read(row, turns="all")] == [(["q"], ["a"]), (["q", "a", "r"], ["b"])]
    seeds = {"instruction": "i", "instances": [{"input": "x", "output": "1"}, {"input": "", "output": "2"}]}
    assert [said(one) for one in read(seeds)] == [(["i\n\nx"], ["1"]), (["i"], ["2"])]


@pytest.mark.parametrize(("label", "settings", "wanted"), [
    (True, {}, True), (0, {}, False), ("desirable", {}, True), ("False", {}, False), (1.0, {}, True),
    ("up", {"labels": {"Up": True}}, True), (2, {"labels": {"2": False}}, False)])
def test_labels(label, settings, wanted):
    assert read({"prompt": "q", "completion": "a", "label": label}, **settings)[0].label is wanted
    assert read({"messages": turns("q", "a"), "label": label}, **settings)[0].label is wanted


def test_without_a_label_it_is_a_demonstration_and_an_unknown_word_is_refused():
    assert read({"prompt": "q", "completion": "a", "label": None})[0].label is None
    with pytest.raises(ValueError, match=r"label: 'up', expected true or false .* data\.format\.labels"):
        read({"prompt": "q", "completion": "a", "label": "up"})


@pytest.mark.parametrize(("row", "answers", "scores"), [
    ({"prompt": "q", "answers": [{"answer": "b", "rank": 2.0}, {"answer": "a", "rank": 1}, {"answer": "c", "rank": 3}]},
     ["a", "b", "c"], [-1, -2, -3]),
    ({"prompt": "q", "answers": [{"answer": "a", "rank": 1, "score": 0.5}, {"answer": "b", "rank": 2, "score": 0.1}]},
     ["a", "b"], [0.5, 0.1]),
    ({"instruction": "q", "completions": [{"response": "b", "overall_score": 4}, {"response": "a", "overall_score": 9},
                                          {"response": "d", "overall_score": 9}]}, ["a", "b"], [9, 4]),
    ({"prompt": "q", "responses": ["b", "a"], "scores": [1, 2]}, ["a", "b"], [2, 1]),
    ({"prompt": "q", "responses": ["a", "b", "c"], "ranks": [1, 3, 2]}, ["a", "c", "b"], [-1, -2, -3]),
])
def test_ranked_and_scored_lists(row, answers, scores):
    (example,) = read(row)
    assert said(example) == (["q"], answers)
    assert example.scores == scores


def test_answers_as_good_as_the_best_are_no_worse_ones():
    row = {"prompt": "q", "responses": ["a", "b"], "scores": [2, 2]}
    with pytest.raises(Left, match="no answer of the list is worse than the best"):
        read(row)
    assert said(read(row, ties="keep")[0]) == (["q"], ["a", "b"])


def test_solutions_marked_right_or_wrong():
    row = {"question": "q", "ground_truth": "so\nA: 1,200", "6b_finetuning": {"is_correct": False, "solution": "A: 1"},
           "6b_verification": {"is_correct": True, "solution": "A: 1200"}}
    (example,) = read(row)
    assert said(example) == (["q"], ["so\nA: 1,200", "A: 1"])
    assert example.target == Target(answer="1200")


def test_a_tree_gives_its_ranked_replies_and_the_path_of_the_best():
    """The question has two ranked replies; the better one leads on to a single reply, where the path ends."""
    last = {"text": "fine", "role": "assistant", "replies": []}
    tree = {"message_tree_id": "t", "prompt": {"text": "q", "role": "prompter", "replies": [
        {"text": "bad", "role": "assistant", "rank": 1, "replies": []},
        {"text": "good", "role": "assistant", "rank": 0, "replies": [
            {"text": "thanks", "role": "prompter", "replies": [last]}]}]}}
    assert [said(one) for one in read(tree)] == [(["q"], ["good", "bad"]), (["q", "good", "thanks"], ["fine"])]


@pytest.mark.parametrize(("row", "answers", "shares"), [
    ({"instruction": "i", "input": "", "output_1": "x", "output_2": "y", "preference": 2}, ["y", "x"], [1, 0]),
    ({"instruction": "i", "output_1": "x", "output_2": "y", "preference": 1.25}, ["x", "y"], [0.75, 0.25]),
    ({"input": "i", "output_1": "x", "output_2": "y", "label": 1}, ["x", "y"], [1, 0]),
    ({"instruction": "i", "response1": "x", "response2": "y", "annotator1": 2, "annotator2": 2, "annotator3": 0},
     ["y", "x"], [pytest.approx(5 / 6), pytest.approx(1 / 6)]),
    ({"conversation_a": turns("i", "x"), "conversation_b": turns("i", "y"), "winner": "model_b"}, ["y", "x"], [1, 0]),
])
def test_two_answers_and_who_is_better(row, answers, shares):
    (example,) = read(row)
    assert shape(row)[0].name == "judged pairs"
    assert said(example) == (["i"], answers)
    assert example.scores == shares


def test_a_tie_and_a_row_without_a_verdict_are_left_out():
    row = {"instruction": "i", "output_1": "x", "output_2": "y"}
    for verdict, reason in ((1.5, "a tie of two answers"), (None, "two answers without a verdict")):
        with pytest.raises(Left, match=reason):
            read({**row, "preference": verdict})
    assert said(read({**row, "preference": 1.5}, ties="keep")[0]) == (["i"], ["x", "y"])


@pytest.mark.parametrize(("row", "prompt", "answers", "target"), [
    ({"question": "q", "answer": "2 + 2 = <<2+2=4>>4\n#### 4,000"}, "q", ["2 + 2 = <<2+2=4>>4\n#### 4,000"],
     Target(answer="4000")),
    ({"prompt": "q", "reference": "Paris"}, "q", [], Target(answer="Paris")),
    ({"query": "Question: hot?", "choices": ["ice", "fire"], "gold": 1},
     "Question: hot?\nA. ice\nB. fire\nAnswer with the letter of the right choice.", [],
     Target(answer="B", choices=("ice", "fire"))),
    ({"question": "hot?", "choices": {"text": ["ice", "fire"], "label": ["1", "2"]}, "answerKey": "1"},
     "hot?\nA. ice\nB. fire\nAnswer with the letter of the right choice.", [],
     Target(answer="A", choices=("ice", "fire"))),
    ({"ctx": "He runs and", "endings": ["falls", "flies"], "label": "0"},
     "He runs and\nA. falls\nB. flies\nAnswer with the letter of the best ending.", [],
     Target(answer="A", choices=("falls", "flies"))),
    ({"prompt": "No comma.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"n": None}]}, "No comma.", [],
     Target(instructions=({"id": "punctuation:no_comma", "kwargs": {}},))),
    ({"text": "Write f.", "code": "def f(): ...", "test_list": ["assert f() is None"], "test_setup_code": "import re"},
     "Write f.", ["def f(): ..."], Target(tests=("assert f() is None",), setup="import re")),
    ({"prompt": "def f():", "test": "def check(c): ...", "entry_point": "f"}, "def f():", [],
     Target(tests=("def check(c): ...\ncheck(f)",))),
])
def test_prompts_with_an_answer_to_check(row, prompt, answers, target):
    (example,) = read(row)
    assert said(example) == ([prompt], answers)
    assert example.target == target


@pytest.mark.parametrize(("row", "prompt", "unread"), [
    ({"question_id": 81, "category": "c", "turns": ["q", "r"]}, "q", ("the turns after the first",)),
    ({"question_id": "x", "cluster": "c", "turns": [{"content": "q"}]}, "q", ()),
    ({"uid": "u", "category": "c", "prompt": "q"}, "q", ()),
    ({"instruction": "q", "output": "a", "generator": "g", "dataset": "c"}, "q", ()),
])
def test_benchmarks_are_evaluation_prompts(row, prompt, unread):
    (example,) = read(row)
    assert said(example) == ([prompt], [])
    assert (example.split, example.dataset, example.unread) == ("eval", "c", unread)


def test_plain_text_is_continued():
    assert said(read({"text": "one two three four\n"}, prompt_words=2)[0]) == (["one two"], ["three four"])
    assert said(read({"text": f"{HH} fine"})[0]) == (["Hi there", "Hello", "And you?"], ["fine"])
    for text, reason in (("", "an empty line"), ("one two", "no longer than a prompt")):
        with pytest.raises(Left, match=reason):
            read({"text": text}, prompt_words=2)


@pytest.mark.parametrize("scores", [{"score_chosen": 8, "score_rejected": 7},
                                    {"chosen_rating": "8", "rejected_rating": 7},
                                    {"metadata": {"score_chosen": 8.0, "score_rejected": 7}}])
def test_scores_of_a_pair_are_read_by_name(scores):
    assert read({"prompt": "q", "chosen": "a", "rejected": "b", **scores})[0].scores == [8, 7]


@pytest.mark.parametrize(("scores", "reason"), [((7, 7), pairs.TIED), ((6, 7), pairs.REVERSED)])
def test_ties_and_reversed_pairs_are_left_out_or_kept_with_their_scores(scores, reason):
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": scores[0], "score_rejected": scores[1]}
    with pytest.raises(Left, match=reason):
        read(row)
    assert read(row, ties="keep")[0].scores == list(scores)


@pytest.mark.parametrize(("row", "problem"), [
    ({"prompt": "q", "chosen": "a", "rejected": None}, "rejected: null, expected a text"),
    ({"prompt": "q", "chosen": "a"}, "has no rejected, expected both sides"),
    ({"chosen": "a", "rejected": "b"}, r"has no prompt.*data\.columns=\{prompt: KEY\}"),
    ({"prompt": "q", "chosen": turns("other", "a"), "rejected": "b"}, r"does not begin with the prompt.*prompt: null"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": "NaN", "score_rejected": 1}, "finite number"),
    ({"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b"}]}, r"answers\[2\]: has no rank and no"),
    ({"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": None, "rank": 2}]}, r"\[2\].answer: null"),
    ({"prompt": "q", "responses": ["a", "b"], "scores": [1]}, "2 answers, but 1 scores"),
    ({"prompt": "q", "completion": turns("a")}, "ends with user, expected the assistant's turn"),
    ({"prompt": [{"role": U, "content": [{"type": "image", "url": "x"}]}], "completion": "a"}, "expected text parts"),
    ({"query": "q", "choices": ["a", "b"], "gold": 2}, "the right one of 2 choices is 2, expected one of 0, 1"),
    ({"instruction": "i", "output_1": "x", "output_2": "y", "preference": 3}, "preference: 3, expected a number"),
    ({"message_tree_id": "t", "prompt": {"text": None, "role": "prompter"}}, "text: null, expected a text"),
])
def test_wrong_rows_are_named(row, problem):
    with pytest.raises(ValueError, match=problem):
        read(row)


def test_a_broken_transcript_is_of_the_kind_its_data_set_has():
    with pytest.raises(hh.Irregular, match="do not speak in turn"):
        read({"prompt": "\n\nHuman: a\n\nHuman: b\n\nAssistant:"})


def test_no_two_shapes_claim_the_same_keys():
    """Else which of them reads a row would be a matter of their names."""
    claims = [frozenset(keys) for one in files.shapes() for keys in one.needs]
    assert len(claims) == len(set(claims))
    assert {one.name for one in files.shapes()} >= {"pairs", "ranked lists", "labelled answers", "plain text"}


NEWCOMER = '''
"""Riddles: {"riddle", "solution"}."""
from pipeline.formats.contract import Example, Shape
from pipeline.records import Message


def read(data, settings):
    return [Example([Message("user", data["riddle"])], [Message("assistant", data["solution"])])]


SHAPE = Shape("riddles", (("riddle", "solution"),), read)
'''


def test_a_new_shape_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "riddles.py").write_text(NEWCOMER)
    (tmp_path / "a.jsonl").write_text('{"riddle": "What is it?", "solution": "A pear."}\n')
    monkeypatch.setattr(shapes, "__path__", [*shapes.__path__, str(tmp_path)])
    for remembered in (files.shapes, files.shape_of):
        remembered.cache_clear()
    try:
        made = files.read(tmp_path / "a.jsonl", files.Settings(needed=("sft",)))
    finally:
        monkeypatch.undo()
        for remembered in (files.shapes, files.shape_of):
            remembered.cache_clear()
    assert (made.counts["sft"], made.facts["read as riddles"]) == (1, 1)
