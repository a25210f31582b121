"""AlpacaEval, Arena-Hard and MT-Bench: what is read, what is written, what is refused."""

import json
import os
from pathlib import Path

import pytest

from pipeline import statistics
from pipeline.config import build
from pipeline.errors import UserError
from pipeline.formats import alpaca_eval, alpaca_eval_judgments, arena_hard_judgments, questions
from pipeline.records import Completion, Group, Message
from tests import given

DATA = os.environ.get("ALIGNLOOP_TEST_DATA")
real_data = pytest.mark.skipif(DATA is None, reason="ALIGNLOOP_TEST_DATA is not set")


def lines(path: Path, *rows: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answered(groups: tuple[Group, ...], text: str) -> list[Group]:
    return [Group(g.id, g.messages, (Completion(f"{text} {g.id}", (1, 2, 3)),), dataset=g.dataset) for g in groups]


@real_data
def test_alpaca_eval_is_read_in_order_and_written_back(tmp_path: Path):
    """All 805 instructions in order, five categories; reading what was written gives the same prompts and ids."""
    source = Path(DATA) / "alpaca_eval" / "model_outputs.alpaca-7b.json"
    rows = json.loads(source.read_text())
    prompts = given.splits(alpaca_eval.read(source, alpaca_eval.Settings()))["eval"]
    assert [g.messages[0].content for g in prompts] == [row["instruction"] for row in rows]
    assert len({g.id for g in prompts}) == 805
    assert {g.dataset for g in prompts} == {"helpful_base", "koala", "oasst", "selfinstruct", "vicuna"}
    assert [g.completions[0].text for g in prompts if g.completions] == [r["output"] for r in rows if r["output"]]
    other = alpaca_eval.read(source.with_name("model_outputs.gpt-3.5-turbo-1106.json"), alpaca_eval.Settings())
    assert [g.id for g in given.splits(other)["eval"]] == [g.id for g in prompts]  # whoever answered
    assert alpaca_eval.export(answered(prompts, "to"), {}, "mine", tmp_path, alpaca_eval.Settings()) == 805
    written = json.loads((tmp_path / "model_outputs.json").read_text())
    assert [list(row) for row in written] == [["instruction", "output", "generator", "dataset"]] * 805
    assert {row["generator"] for row in written} == {"mine"}
    again = given.splits(alpaca_eval.read(tmp_path, alpaca_eval.Settings()))["eval"]
    assert [(g.id, g.dataset) for g in again] == [(g.id, g.dataset) for g in prompts]


@real_data
def test_alpaca_eval_annotations_are_the_judges_preferences():
    """The first 100 annotations in the original format say what the table of all judge preferences says."""
    folder = Path(DATA) / "alpaca_eval"
    path = folder / "annotations.alpaca-7b.first100.json"
    prompts = given.splits(alpaca_eval.read(folder / "model_outputs.alpaca-7b.json", alpaca_eval.Settings()))["eval"]
    reference = given.splits(alpaca_eval.read(folder / "reference_outputs.gpt4_1106_preview.json", alpaca_eval.Settings(
        files="*.json")))["eval"]
    asked = [(g, g.completions[0], r.completions[0]) for g, r in zip(prompts, reference, strict=True) if g.completions]
    settings = alpaca_eval_judgments.Settings(str(path))
    found, reasons = alpaca_eval_judgments.preferences(asked, settings)
    rows = {row["instruction"]: row["preference"] - 1 for row in json.loads(path.read_text())}
    judged = [(g, value) for (g, _, _), value in zip(asked, found, strict=True) if value is not None]
    assert len(judged) == 100 and reasons == {"without a judgment": len(asked) - 100, "judged with other answers": 0}
    for group, value in judged:
        assert value == pytest.approx(rows[group.messages[-1].content])
    swapped = [(g, theirs, ours) for g, ours, theirs in asked]
    found, reasons = alpaca_eval_judgments.preferences(swapped, settings)
    assert set(found) == {None} and reasons["judged with other answers"] == 100


def test_annotations_old_ties_and_what_is_wrong(tmp_path: Path):
    asked = [(Group("a", (Message("user", "why"),)), Completion("so"), Completion("no"))]
    path = tmp_path / "annotations.json"
    settings = alpaca_eval_judgments.Settings(str(path))
    row = {"instruction": "why", "generator_2": "m", "preference": 0, "output_1": "no", "output_2": "so"}
    row_without = {key: value for key, value in row.items() if key != "preference"}
    path.write_text(json.dumps([row]))
    assert alpaca_eval_judgments.preferences(asked, settings)[0] == [0.5]
    path.write_text(json.dumps([{**row, "preference": 2}, {**row, "preference": 1.5}]))
    assert alpaca_eval_judgments.preferences(asked, settings)[0] == [0.75]  # judged twice: the mean
    path.write_text(json.dumps([{**row, "preference": p} for p in ("1", 3)] + [{**row, "output_2": None}, row_without]))
    with pytest.raises(UserError, match=r"preference '1' of instruction 'why', expected texts as .* and a") as caught:
        alpaca_eval_judgments.preferences(asked, settings)
    assert len(caught.value.problems) == 4  # without its outputs nobody knows what was judged
    path.write_text(json.dumps([{**row, "preference": None}]))  # the judge said nothing
    assert alpaca_eval_judgments.preferences(asked, settings) == (
        [None], {"without a judgment": 1, "judged with other answers": 0})
    path.write_text(json.dumps([{**row, "generator_2": m, "preference": 1.0} for m in "xy"]))
    with pytest.raises(UserError, match=r"judgments\.model: .* judges x, y; name one"):
        alpaca_eval_judgments.preferences(asked, settings)
    only_x = alpaca_eval_judgments.Settings(str(path), model="x")
    assert alpaca_eval_judgments.preferences(asked, only_x)[0] == [0.0]


@real_data
def test_arena_hard_questions_and_answers(tmp_path: Path):
    """Questions in order with their clusters; given answers beside them; what is written reads back as answers."""
    root = Path(DATA) / "arena_hard"
    settings = questions.Settings(answers="model_answer.gpt-4-0314.jsonl.gz")
    found = given.splits(questions.read(root, settings))["eval"]
    rows = [json.loads(line) for line in (root / "question.jsonl").open()]
    assert [(g.id, g.messages[0].content, g.dataset) for g in found] == [
        (r["question_id"], r["turns"][0]["content"], r["cluster"]) for r in rows]
    assert all(len(g.completions) == 1 for g in found)
    assert questions.files(root, settings) == [root / "question.jsonl", root / settings.answers]
    assert questions.export(answered(found, "my"), {}, "mine", tmp_path, settings) == len(rows)
    written = [json.loads(line) for line in (tmp_path / "model_answer" / "mine.jsonl").open()]
    assert written[0]["choices"] == [{"index": 0, "turns": [{"content": f"my {found[0].id}", "token_len": 3}]}]
    (tmp_path / "question.jsonl").write_bytes((root / "question.jsonl").read_bytes())
    again = given.splits(questions.read(tmp_path, questions.Settings(answers="model_answer/mine.jsonl")))["eval"]
    assert [g.completions[0].text for g in again] == [f"my {g.id}" for g in found]


@real_data
def test_mt_bench_has_second_turns_and_two_turn_answers(tmp_path: Path):
    """Written as FastChat's reference answers are: numbers as question ids, two texts as turns."""
    root = Path(DATA) / "mt_bench"
    settings = questions.Settings(two_turns=True, counted=False)
    found, later = given.splits(questions.read(root, settings))["eval"], questions.follow_ups(root, settings)
    assert len({g.dataset for g in found}) == 8 and set(later) == {g.id for g in found}
    second = {g.id: g for g in answered(found, "then")}
    questions.export(answered(found, "first"), second, "mine", tmp_path, settings)
    (first, *_) = (json.loads(line) for line in (tmp_path / "model_answer" / "mine.jsonl").open())
    (reference, *_) = (json.loads(line) for line in (root / "reference_answer.gpt-4.jsonl").open())
    assert first["question_id"] == 81 and first["choices"][0]["turns"] == ["first 81", "then 81"]
    assert set(first) == set(reference) - {"tstamp"} and set(first["choices"][0]) == set(reference["choices"][0])


@real_data
def test_given_answers_of_mt_bench_have_both_turns():
    root = Path(DATA) / "mt_bench"
    settings = questions.Settings(two_turns=True, answers="reference_answer.gpt-4.jsonl")
    rows = [json.loads(line) for line in (root / settings.answers).open()]
    turns = {str(row["question_id"]): row["choices"][0]["turns"] for row in rows}
    found = given.splits(questions.read(root, settings))["eval"]
    first = {g.id: g.completions[0].text for g in found if g.completions}
    assert len(turns) == 24 and first == {name: both[0] for name, both in turns.items() if name in first}
    assert questions.given_follow_ups(root, settings) == {name: both[1] for name, both in turns.items()}


def test_questions_that_are_wrong_are_named_with_their_line(tmp_path: Path):
    lines(tmp_path / "question.jsonl", {"question_id": 1, "turns": ["a"]}, {"question_id": True, "turns": ["a"]},
          {"question_id": 1, "turns": ["b"]}, {"question_id": 4, "turns": [3]}, {"question_id": 5, "turns": [" "]})
    with pytest.raises(UserError) as caught:
        questions.read(tmp_path, questions.Settings())
    told = [problem.removeprefix(f"{tmp_path}/question.jsonl:") for problem in caught.value.problems]
    assert told[0].startswith("2: question_id: True, expected") and told[1] == "3: question_id '1' is there twice"
    assert told[2].startswith("4: turns: [3], expected") and told[3].startswith("5: turn 1 (user) is empty")


def test_arena_hard_games_by_hand(tmp_path: Path):
    """q1: game 1 (the model is B) "B>A" a win, game 2 (the model is A) "A=B" a tie: (1 + 0.5) / 2.
    q2: "A>>B" in game 1 is three votes lost, "B<A" in game 2 one won: 1 / 4. q3: no verdict: left out.
    Of all six votes 2.5 are won: the benchmark's own score, whose bootstrap draws single votes."""
    path = lines(
        tmp_path / "judgment.jsonl",
        {"question_id": "q1", "model": "m", "games": [{"score": "B>A"}, {"score": "A=B"}]},
        {"question_id": "q2", "model": "m", "games": [{"score": "A>>B"}, {"score": "B<A"}]},
        {"question_id": "q3", "model": "m", "games": [{"score": None}, {"score": None}]},
        {"question_id": "elsewhere", "model": "m", "games": [{"score": "A>B"}]},
    )
    asked = [(Group(n, (Message("user", n),)), Completion("ours"), Completion("theirs")) for n in ("q1", "q2", "q3")]
    settings = build(arena_hard_judgments.Settings, {"path": str(path)})
    assert arena_hard_judgments.preferences(asked, settings) == (
        [0.75, 0.25, None], {"without a judgment": 1, "judged with other answers": 0})
    own = arena_hard_judgments.published(asked, settings, seed=0, resamples=500, confidence=0.9)
    assert (own["win_rate"], own["votes"]) == (pytest.approx(2.5 / 6), 6)
    assert (own["low"], own["high"]) == statistics.bootstrap([1.0, 0.5, 0.0, 0.0, 0.0, 1.0], 0, 500, 0.9)
    once = build(arena_hard_judgments.Settings, {"path": str(path), "strong": 1})
    assert arena_hard_judgments.preferences(asked, once)[0][1] == 0.5
    with pytest.raises(UserError, match=r"question 'q1' has several answers and .* does not say"):
        arena_hard_judgments.preferences([asked[0], asked[0]], settings)
    lines(path, {"question_id": "q1", "model": "m", "games": [{"score": "A"}]})
    with pytest.raises(UserError, match=r"games\[0\]\.score: 'A', expected one of A>>B"):
        arena_hard_judgments.preferences(asked, settings)


def test_arena_hard_prompts_say_which_answers_were_judged(tmp_path: Path):
    read = {"score": "B>A", "user_prompt": "<|A|>\nthe base\n<|B|>\nsecond\n"}
    path = lines(tmp_path / "judgment.jsonl", {"question_id": "q1", "model": "m", "games": [read]})
    group = Group("q1", (Message("user", "q"),))
    asked = [(group, Completion(text), Completion("the base")) for text in ("first", "second ")]
    found = arena_hard_judgments.preferences(asked, build(arena_hard_judgments.Settings, {"path": str(path)}))
    assert found == ([None, 1.0], {"without a judgment": 0, "judged with other answers": 1})


def test_an_answer_within_a_longer_one_was_not_judged(tmp_path: Path):
    """ "Yes" begins "Yes, it is.", and an empty answer is in every prompt; the judge read neither."""
    read = {"score": "B>A", "user_prompt": "<|A|>\nNo.\n\nIt (is) not.\n<|B|>\nYes, it is.\n<|end|>"}
    path = lines(tmp_path / "judgment.jsonl", {"question_id": "q1", "model": "m", "games": [read]})
    group, base = Group("q1", (Message("user", "q"),)), Completion("No.\n\nIt (is) not.")
    asked = [(group, Completion(text), base) for text in ("Yes", "it is.", " ", " Yes, it is.\n")]
    found = arena_hard_judgments.preferences(asked, build(arena_hard_judgments.Settings, {"path": str(path)}))
    assert found == ([None, None, None, 1.0], {"without a judgment": 0, "judged with other answers": 3})


def test_one_file_is_meant_and_an_instruction_is_there_once(tmp_path: Path):
    rows = [{"instruction": "a", "output": "x"}, {"instruction": "a", "output": "y"}, {"instruction": 3}]
    (tmp_path / "model_outputs.json").write_text(json.dumps(rows))
    with pytest.raises(UserError) as caught:
        alpaca_eval.read(tmp_path, alpaca_eval.Settings())
    assert "the same instruction as an earlier row" in caught.value.problems[0]
    assert "instruction: 3, expected a text" in caught.value.problems[1]
    (tmp_path / "model_outputs.2.json").write_text("[]")
    with pytest.raises(UserError, match="means 2 files"):
        alpaca_eval.read(tmp_path, alpaca_eval.Settings())
    (tmp_path / "model_outputs.json").write_text(json.dumps(rows[:1]))
    (tmp_path / "model_outputs.2.json").unlink()
    (bare,) = given.splits(alpaca_eval.read(tmp_path, alpaca_eval.Settings(outputs="drop")))["eval"]
    assert bare.completions == ()
