"""Prompts whose answers a rule can check (records.Target); a worked solution beside them is a demonstration.

    {"question", "answer": "... #### 240"}             GSM8K: the answer is a demonstration, "240" what is checked
    {"prompt", "reference" | "ground_truth" | ...}     a reference answer alone
    {"query" | "question", "choices", "gold" | "answer" | "answerKey"}            ARC, MMLU
    {"ctx", "endings", "label"}                        HellaSwag
    {"prompt", "instruction_id_list", "kwargs"}        IFEval
    {"text" | "prompt", "test_list" | "test"}          MBPP, HumanEval: statements that fail where the code is wrong
"""

import re
import string
from typing import Any

from pipeline.formats import turns
from pipeline.formats.contract import Example, Shape
from pipeline.records import Message, Target

_REFERENCES = ("reference", "reference_answer", "ground_truth", "target")
_CHOICES, _RIGHT = ("choices", "endings", "options"), ("gold", "label", "answerKey", "answer")
_TESTS = ("test_list", "test")
_SAY = "Answer with the letter of the {}."
_FINAL = re.compile(r"(?:####|^A:)\s*(.+?)\s*$", re.MULTILINE)


def read(data: dict[str, Any], settings: Any) -> list[Example]:
    if "instruction_id_list" in data:
        return [Example(turns.required(data), target=Target(instructions=_instructions(data)))]
    if key := next((key for key in _CHOICES if key in data), ""):
        return [_choice(data, key)]
    if key := next((key for key in _TESTS if key in data), ""):
        return [_code(data, key)]
    if key := next((key for key in _REFERENCES if data.get(key) is not None), ""):
        return [Example(turns.required(data), target=Target(answer=final(turns.text(data, key))))]
    answer = turns.single(data.get("answer"), "answer")
    return [Example(turns.required(data), [answer], target=Target(answer=final(answer.content)))]


def final(text: str) -> str:
    """What a worked solution comes to: behind its last "####" or "A:", commas of a number left out; else all of it."""
    found = _FINAL.findall(text)
    last = str(found[-1]) if found else text.strip()
    return last.replace(",", "") if re.fullmatch(r"-?[$]?[\d,]+(\.\d+)?", last) else last


def _choice(data: dict[str, Any], key: str) -> Example:
    """A prompt with the choices as lines A, B, C ..., and the letter of the right one."""
    choices: Any = data[key]
    letters = None
    if isinstance(choices, dict):  # ARC on the hub: {"text": [...], "label": ["A", ...]}
        choices, letters = choices.get("text"), choices.get("label")
    if not (isinstance(choices, list) and 2 <= len(choices) <= 26 and all(isinstance(one, str) for one in choices)):
        raise ValueError(f"{key}: {str(choices)[:60]}, expected two texts or more")
    right = next((data[name] for name in _RIGHT if data.get(name) is not None), None)
    if right is None:
        raise ValueError(f"{next(name for name in _RIGHT if name in data)}: null, expected which choice is right")
    names = [str(one) for one in letters or range(len(choices))]
    if str(right) not in names and str(right) in string.ascii_uppercase[:len(choices)]:
        names = list(string.ascii_uppercase[:len(choices)])
    if str(right) not in names:
        raise ValueError(f"the right one of {len(choices)} choices is {right!r}, expected one of {', '.join(names)}")
    letter = string.ascii_uppercase[names.index(str(right))]
    lines = [f"{name}. {choice}" for name, choice in zip(string.ascii_uppercase, choices, strict=False)]
    asked = turns.text(data, "ctx" if "ctx" in data else "query" if "query" in data else "question").strip()
    said = "\n".join([asked, *lines, _SAY.format("best ending" if key == "endings" else "right choice")])
    return Example([Message("user", said)], target=Target(answer=letter, choices=tuple(choices)))


def _instructions(data: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    ids, kwargs = data["instruction_id_list"], data.get("kwargs") or [{}] * len(data["instruction_id_list"] or [])
    good = isinstance(ids, list) and isinstance(kwargs, list) and len(ids) == len(kwargs) and ids
    if not good or not all(isinstance(one, dict) for one in kwargs):
        raise ValueError(f"instruction_id_list: {str(ids)[:60]} with kwargs {str(kwargs)[:60]}, expected one for each")
    return tuple({"id": str(name), "kwargs": {k: v for k, v in one.items() if v is not None}}
                 for name, one in zip(ids, kwargs, strict=True))


def _code(data: dict[str, Any], key: str) -> Example:
    tests = data[key] if isinstance(data[key], list) else [data[key]]
    if not tests or not all(isinstance(one, str) for one in tests):
        raise ValueError(f"{key}: {str(data[key])[:60]}, expected a list of statements")
    if data.get("entry_point"):  # HumanEval's test is a function check(candidate)
        tests = [f"{tests[0]}\ncheck({data['entry_point']})"]
    asked = turns.required(data if "prompt" in data else {**data, "prompt": data["text"]})
    setup = str(data.get("test_setup_code") or "")
    code = next((data[name] for name in ("code", "canonical_solution") if data.get(name)), None)
    answers = [] if code is None else [turns.single(code, "code")]
    return Example(asked, answers, target=Target(tests=tuple(tests), setup=setup))


SHAPE = Shape(
    "prompts with an answer to check",
    (("question", "answer"), ("prompt", "instruction_id_list"), ("ctx", "endings", "label"),
     *((asked, choices, right) for asked in ("query", "question") for choices in ("choices", "options") for right in
       ("gold", "answerKey", "answer")), *((asked, tests) for asked in ("text", "prompt") for tests in _TESTS),
     *((asked, reference) for asked in ("prompt", "question", "instruction") for reference in _REFERENCES)), read,
    reads=("kwargs", "test_setup_code", "code", "canonical_solution", "entry_point", "input"))
