"""Question files of Arena-Hard and MT-Bench: one {question_id, category, turns, ...} a line; answers in files beside.

    question.jsonl            {"question_id", "category", "cluster" (Arena-Hard), "turns": [text or {"content": text}]}
    model_answer/<name>.jsonl {"question_id", "model_id", "answer_id", "choices": [{"index", "turns": [...]}]}

The first turn becomes an evaluation prompt, the second is asked once the first is answered. Answers in a file beside
come along as given ones, both turns. The category is the `cluster` where there is one.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import Problems, UserError
from pipeline.formats import lines, splits
from pipeline.formats.contract import Format
from pipeline.formats.splits import Imported
from pipeline.records import Completion, Group, Message

EXPECTED = "a folder with question.jsonl ({question_id, category, turns} a line), or that file"


@dataclass(frozen=True)
class Settings:
    """What to read."""

    questions: str = "question.jsonl"  # glob under the root
    answers: str | None = None  # file under the root with answers to compare with
    two_turns: bool = False  # whether `export` writes two turns per question
    counted: bool = True  # whether it writes a turn as {content, token_len}, as Arena-Hard does, or as a text


def files(root: Path, settings: Settings) -> list[Path]:
    """Questions, and answers where they are asked for. Raises UserError where a file is missing."""
    return [*_questions(root, settings), *_answers(root, settings)]


def _questions(root: Path, settings: Settings) -> list[Path]:
    return lines.find(root, settings.questions, "data.format.questions", EXPECTED)


def _answers(root: Path, settings: Settings) -> list[Path]:
    if settings.answers is None:
        return []
    if root.is_file():
        raise UserError(f"data.format.answers: data.root is the file {root}, expected the folder that holds both")
    return lines.find(root, settings.answers, "data.format.answers", EXPECTED)


def read(root: Path, settings: Settings) -> Imported:
    """First turns as evaluation prompts, in the order of the file. Raises UserError with every wrong row."""
    problems = Problems()
    groups: dict[str, Group] = {}
    for row in lines.rows(_questions(root, settings), problems):
        with lines.reported(row, problems):
            name, turns = _turns(row.data)
            asked = [Message("user", turns[0])]
            problem = splits.message_problem(asked)
            if problem or name in groups:
                raise ValueError(problem or f"question_id {name!r} is there twice")
            category = str(row.data.get("cluster") or row.data.get("category") or "")
            groups[name] = splits.group_of(asked, [], None, category, name)
    for name, answers in _given(root, settings, problems):
        if name in groups:
            groups[name] = replace(groups[name], completions=(Completion(answers[0]),))
    problems.stop()
    return splits.evaluation(list(groups.values()))


def follow_ups(root: Path, settings: Settings) -> dict[str, str]:
    """{question id: second turn} of the questions that have one."""
    problems = Problems()
    found = [_turns(row.data) for row in lines.rows(_questions(root, settings), problems)]
    problems.stop()
    return {name: turns[1] for name, turns in found if len(turns) > 1}


def given_follow_ups(root: Path, settings: Settings) -> dict[str, str]:
    """{question id: answer to the second turn} of the given answers that have one. UserError: no answers are named."""
    if settings.answers is None:
        raise UserError("data.format.answers: null, expected the file with the given answers of both turns")
    problems = Problems()
    found = {name: answers[1] for name, answers in _given(root, settings, problems) if len(answers) > 1}
    problems.stop()
    return found


def _given(root: Path, settings: Settings, problems: Problems) -> Iterator[tuple[str, list[str]]]:
    """(question id, its answers by turn) of every row of the given answers; a bad row goes to `problems`."""
    for row in lines.rows(_answers(root, settings), problems):
        with lines.reported(row, problems):
            yield _answers_of(row.data)


def _turns(data: dict[str, Any]) -> tuple[str, list[str]]:
    name, turns = data.get("question_id"), data.get("turns")
    if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "":
        raise ValueError(f"question_id: {name!r}, expected a text or a whole number")
    texts = [_text(turn) for turn in turns] if isinstance(turns, list) else []
    if not texts or None in texts:
        raise ValueError(f"turns: {str(turns)[:60]}, expected a list of texts or of {{content: text}}")
    return str(name), [text for text in texts if text is not None]


def _answers_of(data: dict[str, Any]) -> tuple[str, list[str]]:
    """(question id, the turns of the first choice: one or two texts)."""
    try:
        texts = [_text(turn) for turn in data["choices"][0]["turns"]]
        name = str(data["question_id"])
    except (KeyError, IndexError, TypeError):
        texts, name = [], ""
    told = [text for text in texts if text is not None and text.strip()]
    if not told or len(told) < len(texts):
        raise ValueError("expected {question_id, choices: [{turns: [answer, ...]}]} with a text as every answer")
    return name, told


def _text(turn: Any) -> str | None:
    text = turn.get("content") if isinstance(turn, dict) else turn
    return text if isinstance(text, str) else None


def export(groups: Iterable[Group], second: dict[str, Group], model: str, out: Path, settings: Settings) -> int:
    """Write model_answer/<model>.jsonl and return the number of answers. `second`: the answers to the second turns.

    `answer_id` is made from model and question, and there is no time stamp, so that equal answers are equal bytes;
    `token_len` counts the model's own tokens.
    """
    path, number = out / "model_answer" / f"{model}.jsonl", 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for group in groups:
            turns = [group.completions[0]]
            if settings.two_turns and group.id in second:
                turns.append(second[group.id].completions[0])
            said = [{"content": c.text, "token_len": len(c.token_ids)} if settings.counted else c.text for c in turns]
            row = {"question_id": int(group.id) if group.id.isdigit() else group.id,
                   "answer_id": hashlib.sha256(f"{model}/{group.id}".encode()).hexdigest()[:22], "model_id": model,
                   "choices": [{"index": 0, "turns": said}]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            number += 1
    return number


FORMAT = Format(
    Settings, EXPECTED, files, read, follow_ups=follow_ups, given_follow_ups=given_follow_ups, export=export)
