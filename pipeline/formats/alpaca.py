"""Instruction files (Taori et al. 2023) and their kin, by folder or file.

    {"instruction", "input", "output"}            Alpaca; GPTeacher calls the answer "response"
    {"instruction", "instances": [{"input", "output"}]}    Self-Instruct (Wang et al. 2023): one demonstration each
    {"instruction", "input", "chosen", "rejected"}    pairs; "system" and "history" [[user, assistant], ...] are kept
    {"conversations": [{"from", "value"}], "chosen": {"from", "value"}, "rejected": ...}    LLaMA-Factory pairs

The user's turn is the instruction, a blank line and the input where there is one; the chat template does what Alpaca's
prompt text did. `unlabeled` prompts are taken from the demonstrations, files named *.test.* give `eval`. Without a file
of pairs there is no `pref` split. Rows with a `label` (LLaMA-Factory's kto files) are counted and left out.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config import setting
from pipeline.errors import Problems
from pipeline.formats import lines, splits
from pipeline.formats.contract import Format
from pipeline.formats.divide import divide
from pipeline.formats.splits import Entry, Imported, Limits, Shares
from pipeline.records import Message

EXPECTED = "a folder of .json, .jsonl or .jsonl.gz files with instruction, input and output, or one such file"
LABELLED = "labelled answer (read by data=jsonl)"
_KEYS = {"instruction", "input", "output", "response", "instances", "chosen", "rejected", "system", "history",
         "conversations"}
_ROLE = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Settings:
    """What to read and how much of it."""

    files: str = "**/*.json*"  # glob under the root
    identical: str = setting("error", choices=("error", "drop"))  # a pair whose sides are the same text
    empty: str = setting("error", choices=("error", "drop"))  # a row with an empty answer
    turns: str = setting("last", choices=("last", "all"))  # of a conversation: the answers to learn from, a group each
    # Demonstrations come first here: half of what AlpacaFarm gives to the prompts, and more to look at than 0.8.
    shares: Shares = field(default_factory=lambda: Shares(sft=20, pref=10, unlabeled=10, eval=1))
    limits: Limits = field(default_factory=Limits)


def files(root: Path, settings: Settings) -> list[Path]:
    """The files `read` will read, sorted. Raises UserError if there are none."""
    return lines.find(root, settings.files, "data.format.files", EXPECTED)


def read(root: Path, settings: Settings) -> Imported:
    """All groups by split. Raises UserError with every row that is neither an instruction nor a pair."""
    return divide(partial(_entries, files(root, settings), settings), settings.shares, settings.limits)


def _entries(found: list[Path], settings: Settings, problems: Problems, dropped: Counter[str]) -> Iterator[Entry]:
    for row in lines.rows(found, problems):
        if "label" in row.data:
            dropped[LABELLED] += 1
            continue
        with lines.reported(row, problems):
            made = [one for group in _groups(row.data) for one in _learnt(*group, settings.turns)]
            unread = tuple(key for key in row.data if key not in _KEYS)
            for messages, answers in made:
                _check(messages, answers)
            for messages, answers in made:
                if not splits.faulty(answers, settings, row.where, problems, dropped):
                    group = splits.group_of(messages, answers, None, lines.stem(row.file), "")
                    kind = "pref" if len(answers) == 2 else "sft"
                    yield Entry(row.where, group, "eval" if lines.is_test(row.file) else kind, unread=unread)
                    unread = ()  # once for a row


def _learnt(messages: list[Message], answers: list[str], turns: str) -> Iterator[tuple[list[Message], list[str]]]:
    """A demonstration as one, or with turns=all one for every assistant's turn before its answer as well."""
    if turns == "all" and len(answers) == 1:
        yield from ((messages[:i], [m.content]) for i, m in enumerate(messages) if m.role == "assistant")
    yield messages, answers


def _groups(data: dict[str, Any]) -> Iterator[tuple[list[Message], list[str]]]:
    """(prompt, answers) of a row: one, or one per instance. Raises ValueError."""
    if "conversations" in data:
        if not isinstance(data["conversations"], list):
            raise ValueError("conversations: expected a list of {from, value}")
        messages = [_message(turn, f"conversations turn {i}") for i, turn in enumerate(data["conversations"], 1)]
        messages = [*_system(data), *messages]
        if "chosen" in data or "rejected" in data:
            yield messages, [_side(data, "chosen"), _side(data, "rejected")]
        else:  # ShareGPT: the conversation ends with the demonstration
            if not messages or messages[-1].role != "assistant":
                raise ValueError("conversations: ends without an answer, expected the assistant's turn last")
            yield messages[:-1], [messages[-1].content]
    elif "instruction" not in data:
        raise ValueError(f"has no instruction, found the keys {', '.join(data) or '(none)'}; expected instruction, "
                         "input and output; name the files to read with data.format.files=GLOB")
    elif "instances" in data:
        if not isinstance(data["instances"], list) or not data["instances"]:
            raise ValueError("instances: expected a list of {input, output}")
        for number, instance in enumerate(data["instances"], 1):
            if not isinstance(instance, dict):
                raise ValueError(f"instances: number {number} is {str(instance)[:40]}, expected {{input, output}}")
            yield _instruction(data, instance)
    else:
        yield _instruction(data, data)


def _instruction(data: dict[str, Any], answered: dict[str, Any]) -> tuple[list[Message], list[str]]:
    keys = ["chosen", "rejected"] if "chosen" in answered else ["response" if "response" in answered else "output"]
    instruction, answers = _text(data, "instruction"), [_text(answered, key) for key in keys]
    more = _text(answered, "input") if answered.get("input") is not None else ""
    if re.sub(r"[^a-z]", "", more.lower()) == "noinput":  # "<noinput>", "No Input": how generated files say "none"
        more = ""
    prompt = f"{instruction}\n\n{more}" if more else instruction
    return [*_system(data), *_history(data.get("history") or []), Message("user", prompt)], answers


def _system(data: dict[str, Any]) -> list[Message]:
    return [Message("system", _text(data, "system"))] if data.get("system") else []


def _history(turns: Any) -> list[Message]:
    good = isinstance(turns, list) and all(
        isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn) for turn in turns)
    if not good:
        raise ValueError(f"history: {str(turns)[:60]}, expected a list of [instruction, answer]")
    return [Message(role, turn[at].strip()) for turn in turns for at, role in enumerate(("user", "assistant"))]


def _text(data: dict[str, Any], key: str) -> str:
    if not isinstance(data.get(key), str):
        raise ValueError(f"{key}: {data.get(key)!r}, expected a text")
    return str(data[key]).strip()


def _side(data: dict[str, Any], key: str) -> str:
    message = _message(data.get(key), key)
    if message.role != "assistant":
        raise ValueError(f"{key}: is from {message.role}, expected gpt")
    return message.content


def _message(turn: Any, where: str) -> Message:
    good = isinstance(turn, dict) and isinstance(turn.get("from"), str) and isinstance(turn.get("value"), str)
    if not good or turn["from"] not in _ROLE:
        raise ValueError(f"{where}: {str(turn)[:60]}, expected {{from: human | gpt | system, value: text}}")
    return Message(_ROLE[turn["from"]], turn["value"].strip())


def _check(messages: list[Message], answers: list[str]) -> None:
    if problem := splits.message_problem(messages):
        raise ValueError(f"prompt: {problem}")
    for problem in (splits.text_problem(answer) for answer in answers if answer):
        if problem:
            raise ValueError(f"the answer {problem}")


FORMAT = Format(Settings, EXPECTED, files, read)
