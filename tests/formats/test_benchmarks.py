"""AlpacaEval, Arena-Hard and MT-Bench: what is read, what is written, what is refused."""

import json
import os
from pathlib import Path

import pytest

from pipeline.build import build
from pipeline.formats import alpaca_eval, alpaca_eval_judgments, arena_hard_judgments, questions
from pipeline.records import Completion, Group, Message, UserError

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
    prompts = alpaca_eval.read(source, alpaca_eval.Settings()).splits["eval"]
    assert [g.messages[0].content for g in prompts] == [row["instruction"] for row in rows]
    assert len({g.id for g in prompts}) == 805
    assert {g.dataset for g in prompts} == {"helpful_base", "koala", "oasst", "selfinstruct", "vicuna"}
    assert [g.completions[0].text for g in prompts if g.completions] == [r["output"] for r in rows if r["output"]]
    other = alpaca_eval.read(source.with_name("model_outputs.gpt-3.5-turbo-1106.json"), alpaca_eval.Settings())
    assert [g.id for g in other.splits["eval"]] == [g.id for g in prompts]  # whoever answered
    assert alpaca_eval.export(answered(prompts, "to"), {}, "mine", tmp_path, alpaca_eval.Settings()) == 805
    written = json.loads((tmp_path / "model_outputs.json").read_text())
    assert [list(row) for row in written] == [["instruction", "output", "generator", "dataset"]] * 805
    assert {row["generator"] for row in written} == {"mine"}
    again = alpaca_eval.read(tmp_path, alpaca_eval.Settings()).splits["eval"]
    assert [(g.id, g.dataset) for g in again] == [(g.id, g.dataset) for g in prompts]


@real_data
def test_alpaca_eval_annotations_are_the_judges_preferences():
    """The first 100 annotations in the original format say what the table of all judge preferences says."""
    folder = Path(DATA) / "alpaca_eval"
    path = folder / "annotations.alpaca-7b.first100.json"
    prompts = alpaca_eval.read(folder / "model_outputs.alpaca-7b.json", alpaca_eval.Settings()).splits["eval"]
    groups = {g.id: g for g in prompts}
    found = alpaca_eval_judgments.preferences(groups, alpaca_eval_judgments.Settings(str(path)))
    rows = {row["instruction"]: row["preference"] - 1 for row in json.loads(path.read_text())}
    assert len(found) == 100
    for name, value in found.items():
        assert value == pytest.approx(rows[groups[name].messages[-1].content])


def test_annotations_old_ties_and_what_is_wrong(tmp_path: Path):
    groups = {"a": Group("a", (Message("user", "why"),))}
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([{"instruction": "why", "generator_2": "m", "preference": 0}]))
    assert alpaca_eval_judgments.preferences(groups, alpaca_eval_judgments.Settings(str(path))) == {"a": 0.5}
    path.write_text(json.dumps([{"instruction": "why", "generator_2": "m", "preference": p} for p in (None, 3)]))
    with pytest.raises(UserError, match="preference None of instruction 'why', expected a text and a number from 1"):
        alpaca_eval_judgments.preferences(groups, alpaca_eval_judgments.Settings(str(path)))
    path.write_text(json.dumps([{"instruction": "why", "generator_2": m, "preference": 1.0} for m in "xy"]))
    with pytest.raises(UserError, match=r"judgments\.model: .* judges x, y; name one"):
        alpaca_eval_judgments.preferences(groups, alpaca_eval_judgments.Settings(str(path)))
    only_x = alpaca_eval_judgments.Settings(str(path), model="x")
    assert alpaca_eval_judgments.preferences(groups, only_x) == {"a": 0.0}


@real_data
def test_arena_hard_questions_and_answers(tmp_path: Path):
    """Questions in order with their clusters; given answers beside them; what is written reads back as answers."""
    root = Path(DATA) / "arena_hard"
    settings = questions.Settings(answers="model_answer.gpt-4-0314.jsonl.gz")
    found = questions.read(root, settings).splits["eval"]
    rows = [json.loads(line) for line in (root / "question.jsonl").open()]
    assert [(g.id, g.messages[0].content, g.dataset) for g in found] == [
        (r["question_id"], r["turns"][0]["content"], r["cluster"]) for r in rows]
    assert all(len(g.completions) == 1 for g in found)
    assert questions.files(root, settings) == [root / "question.jsonl", root / settings.answers]
    assert questions.export(answered(found, "my"), {}, "mine", tmp_path, settings) == len(rows)
    written = [json.loads(line) for line in (tmp_path / "model_answer" / "mine.jsonl").open()]
    assert written[0]["choices"] == [{"index": 0, "turns": [{"content": f"my {found[0].id}", "token_len": 3}]}]
    (tmp_path / "question.jsonl").write_bytes((root / "question.jsonl").read_bytes())
    again = questions.read(tmp_path, questions.Settings(answers="model_answer/mine.jsonl")).splits["eval"]
    assert [g.completions[0].text for g in again] == [f"my {g.id}" for g in found]


@real_data
def test_mt_bench_has_second_turns_and_two_turn_answers(tmp_path: Path):
    """Written as FastChat's reference answers are: numbers as question ids, two texts as turns."""
    root = Path(DATA) / "mt_bench"
    settings = questions.Settings(two_turns=True, counted=False)
    found, later = questions.read(root, settings).splits["eval"], questions.follow_ups(root, settings)
    assert len({g.dataset for g in found}) == 8 and set(later) == {g.id for g in found}
    second = {g.id: g for g in answered(found, "then")}
    questions.export(answered(found, "first"), second, "mine", tmp_path, settings)
    (first, *_) = (json.loads(line) for line in (tmp_path / "model_answer" / "mine.jsonl").open())
    (reference, *_) = (json.loads(line) for line in (root / "reference_answer.gpt-4.jsonl").open())
    assert first["question_id"] == 81 and first["choices"][0]["turns"] == ["first 81", "then 81"]
    assert set(first) == set(reference) - {"tstamp"} and set(first["choices"][0]) == set(reference["choices"][0])


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
    q2: "A>>B" in game 1 is three votes lost, "A>B" in game 2 one won: 1 / 4. q3: no verdict: left out."""
    path = lines(
        tmp_path / "judgment.jsonl",
        {"question_id": "q1", "model": "m", "games": [{"score": "B>A"}, {"score": "A=B"}]},
        {"question_id": "q2", "model": "m", "games": [{"score": "A>>B"}, {"score": "A>B"}]},
        {"question_id": "q3", "model": "m", "games": [{"score": None}, {"score": None}]},
        {"question_id": "elsewhere", "model": "m", "games": [{"score": "A>B"}]},
    )
    groups = {name: Group(name, (Message("user", name),)) for name in ("q1", "q2", "q3")}
    settings = build(arena_hard_judgments.Settings, {"path": str(path)})
    assert arena_hard_judgments.preferences(groups, settings) == {"q1": 0.75, "q2": 0.25}
    once = build(arena_hard_judgments.Settings, {"path": str(path), "strong": 1})
    assert arena_hard_judgments.preferences(groups, once)["q2"] == 0.5
    lines(path, {"question_id": "q1", "model": "m", "games": [{"score": "A"}]})
    with pytest.raises(UserError, match=r"games\[0\]\.score: 'A', expected one of A>>B"):
        arena_hard_judgments.preferences(groups, settings)


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
    (bare,) = alpaca_eval.read(tmp_path, alpaca_eval.Settings(outputs="drop")).splits["eval"]
    assert bare.completions == ()
