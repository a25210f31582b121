"""From answers to a benchmark's file, and from first answers to second turns."""

import dataclasses
import json
from pathlib import Path

import pytest

from pipeline import tables
from pipeline.config import build, problems_of
from pipeline.errors import UserError
from pipeline.formats import questions
from pipeline.records import Completion, Group, Message
from pipeline.stage import Context, Reporter
from pipeline.stages import export, next_turn

QUESTIONS = {"module": "pipeline.formats.questions", "two_turns": True, "counted": False}


def group(name: str, *texts: str) -> Group:
    return Group(name, (Message("user", f"question {name}"),), tuple(Completion(t, (3,)) for t in texts), (1, 4, 5))


def run(stage, folder: Path, settings: dict, runtime=None, **groups: list[Group]) -> tuple[Path, Reporter, Context]:
    inputs = {}
    for name, rows in groups.items():
        tables.write(folder / name, rows)
        inputs[name] = (folder / name,)
    report = Reporter()
    made = build(stage.Settings, settings)
    return made, report, Context(made, runtime, inputs, {}, folder / "work", 0, report)


def test_two_turns_become_one_row_and_a_prompt_without_answer_is_counted(tmp_path: Path):
    _, report, context = run(
        export, tmp_path, {"format": QUESTIONS, "model": "mine"},
        groups=[group("1", "a"), group("2", "b"), group("3")], second=[group("1", "then"), group("2")])
    export.run(context)
    rows = [json.loads(line) for line in (context.out / "model_answer" / "mine.jsonl").open()]
    assert [(row["question_id"], row["choices"][0]["turns"]) for row in rows] == [(1, ["a", "then"]), (2, ["b"])]
    assert report.dropped == {"no second answer": 1, "no answer": 1}
    assert report.counts == {"answers": 2, "second_answers": 1}


def test_the_same_answers_are_the_same_bytes(tmp_path: Path):
    contents = []
    for name in "ab":
        _, _, context = run(export, tmp_path / name, {"format": QUESTIONS, "model": "m"}, groups=[group("1", "x")])
        export.run(context)
        contents.append((context.out / "model_answer" / "m.jsonl").read_bytes())
    assert contents[0] == contents[1]


def test_several_answers_and_formats_that_cannot_write_are_refused(tmp_path: Path):
    _, _, context = run(export, tmp_path, {"format": QUESTIONS, "model": "m"}, groups=[group("1", "x", "y")])
    with pytest.raises(UserError, match="prompt '1' has 2 answers, expected one; sample one with sampling=single"):
        export.run(context)
    found = problems_of(export.Settings, {"format": {"module": "pipeline.formats.hh"}, "model": "a/b"}, "s")
    assert [problem.partition(":")[0] for problem in found] == ["s.format.module", "s.model"]


def test_the_second_turn_is_asked_after_the_first_answer(tmp_path: Path, tiny_model: Path):
    """Ids of the template's own rendering of question, answer, next question; what has no answer or no second turn, and
    what is too long, is counted."""
    from pipeline.lm.folders import load_tokenizer

    (tmp_path / "question.jsonl").write_text("".join(
        json.dumps({"question_id": n, "turns": ["q", *later]}) + "\n"
        for n, later in ((1, ["and then?"]), (2, ["and?"]), (3, []), (4, ["x " * 60]))))
    runtime = next_turn.Runtime(root=str(tmp_path))
    made, report, context = run(
        next_turn, tmp_path, {"format": QUESTIONS, "max_prompt_tokens": 100}, runtime,
        answers=[group("1", "an answer"), group("2"), group("3", "c"), group("4", "d")])
    context.inputs["model"] = (tiny_model,)
    assert next_turn.files(made, runtime) == [tmp_path / "question.jsonl"]
    next_turn.run(context)
    (asked,) = tables.read(context.out / "groups")
    assert [(m.role, m.content) for m in asked.messages] == [
        ("user", "question 1"), ("assistant", "an answer"), ("user", "and then?")]
    text = "<s><|user|>question 1<|assistant|>an answer</s><|user|>and then?<|assistant|>"
    assert load_tokenizer(tiny_model).decode(asked.prompt_ids) == text
    assert report.dropped == {"no first answer": 1, "no second turn": 1, "long_prompt": 1}


def test_given_answers_come_with_their_second_turns(tmp_path: Path, tiny_model: Path):
    """1 has both turns; 2 was answered once; 3 not at all. The conversation holds the given first answer, the group the
    given second one, cut at the limit like any given answer."""
    (tmp_path / "question.jsonl").write_text("".join(
        json.dumps({"question_id": n, "turns": ["q", "and?"]}) + "\n" for n in (1, 2, 3)))
    (tmp_path / "given.jsonl").write_text("".join(
        json.dumps({"question_id": n, "choices": [{"index": 0, "turns": turns}]}) + "\n"
        for n, turns in ((1, ["first", "then this"]), (2, ["only"]))))
    part = {**QUESTIONS, "answers": "given.jsonl"}
    runtime = next_turn.Runtime(root=str(tmp_path))
    made, report, context = run(
        next_turn, tmp_path, {"format": part, "given": True, "max_completion_tokens": 5}, runtime,
        answers=[group("1", "first"), group("2", "only"), group("3")])
    context.inputs["model"] = (tiny_model,)
    assert next_turn.files(made, runtime) == [tmp_path / "question.jsonl", tmp_path / "given.jsonl"]
    next_turn.run(context)
    (found,) = tables.read(context.out / "groups")
    assert [m.content for m in found.messages] == ["question 1", "first", "and?"]
    (answer,) = found.completions
    assert (answer.text, len(answer.token_ids), answer.finish_reason) == ("then this", 5, "length")
    assert report.dropped == {"no second answer": 1, "no first answer": 1, "truncated": 1}
    found = problems_of(next_turn.Settings, {"format": QUESTIONS, "given": True}, "s")
    assert found == ["s.format.answers: null, expected the file with the given answers"]


def test_a_format_without_second_turns_is_refused():
    found = problems_of(next_turn.Settings, {"format": {"module": "pipeline.formats.alpaca_eval"}}, "s")
    assert found == ["s.format.module: pipeline.formats.alpaca_eval has no second turns; use data=mt_bench"]


def test_given_second_answers_of_a_format_that_has_none_are_refused(monkeypatch: pytest.MonkeyPatch):
    """A format of a user's own that knows second turns and nothing more: `given` would have been passed over."""
    monkeypatch.setattr(questions, "FORMAT", dataclasses.replace(questions.FORMAT, given_follow_ups=None))
    assert problems_of(next_turn.Settings, {"format": QUESTIONS, "given": True}, "s") == [
        "s.given: true, but pipeline.formats.questions has no given answers to second turns; set it to false or use "
        "data=mt_bench"]
