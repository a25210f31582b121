"""JSON lines in the shapes TRL documents ("Dataset formats and types"), plain or conversational.

    {"prompt", "chosen", "rejected"}          a pair; texts or lists of {"role", "content"}
    {"chosen", "rejected"}                    conversations whose common beginning is the prompt
    {"messages"}                              a demonstration; a prompt where the user speaks last
    {"prompt", "completion"}                  a demonstration
    {"prompt"}                                a prompt
    {"prompt", "completion", "label"}, {"messages", "label"}     one answer, desirable or not

An optional "id" is kept; other keys are ignored. Texts are taken as they are, with their white space.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config import setting
from pipeline.errors import Problems, UserError
from pipeline.formats import lines, splits
from pipeline.formats.contract import Format
from pipeline.formats.divide import divide
from pipeline.formats.lines import Row
from pipeline.formats.splits import SPLITS, Entry, Imported, Limits, Shares
from pipeline.records import Message

EXPECTED = "a .jsonl or .jsonl.gz file (one JSON object per line), or a folder of them"
KEYS = "prompt + chosen + rejected, messages, prompt + completion, or prompt"


@dataclass(frozen=True)
class Settings:
    """Which file holds which split. With none named, every file is read and a row's keys say what it is:
    pairs and labelled answers -> pref, demonstrations -> sft, prompts -> unlabeled, files named *.test.* -> eval.
    Splits without rows of their own are filled from the others (see `splits.divide`)."""

    sft: str | None = None  # demonstrations: file name or glob under the root
    pref: str | None = None  # pairs, or labelled answers: likewise
    unlabeled: str | None = None  # prompts to sample from: likewise
    eval: str | None = None  # prompts to evaluate on: likewise
    files: str = "*.json*"  # what is read when no split is named
    identical: str = setting("error", choices=("error", "drop"))  # a pair whose sides are the same text
    empty: str = setting("error", choices=("error", "drop"))  # a row with an empty answer
    shares: Shares = field(default_factory=Shares)
    limits: Limits = field(default_factory=Limits)


def files(root: Path, settings: Settings) -> list[Path]:
    """The files `read` will read, each once, sorted. Raises UserError with every missing one."""
    found: list[Path] = []
    problems: list[str] = []
    for split, pattern in _patterns(settings).items():
        key = f"data.format.{split or 'files'}"
        try:
            if split and root.is_file():
                raise UserError(f"{key}: data.root is the file {root}, expected the folder {pattern!r} is in")
            found += lines.find(root, pattern, key, EXPECTED)
        except UserError as error:
            problems += [p for p in error.problems if p not in problems]
    if problems:
        raise UserError(*problems)
    return sorted(set(found))


def read(root: Path, settings: Settings) -> Imported:
    """All groups by split. Raises UserError with every unreadable or wrong row."""
    files(root, settings)
    return divide(partial(_entries, root, settings), settings.shares, settings.limits)


def _entries(root: Path, settings: Settings, problems: Problems, dropped: Counter[str]) -> Iterator[Entry]:
    first: dict[bool, str] = {}  # of the preference rows: with a label or not -> where the first one is
    for split, pattern in _patterns(settings).items():
        for row in lines.rows(lines.find(root, pattern, "data.format.files", EXPECTED), problems):
            with lines.reported(row, problems):
                entry = _entry(row, split)
                texts = [completion.text for completion in entry.group.completions]
                if splits.faulty(texts, settings, row.where, problems, dropped):
                    continue
                if entry.split == "pref":
                    first.setdefault(entry.group.label is not None, row.where)
                yield entry
    if len(first) > 1:  # no objective takes both: say so instead of training on half of it
        problems.add(f"{first[True]}: a labelled answer, but {first[False]} is a pair; expected one kind; "
                     "name the file with data.format.pref=FILE")


def _patterns(settings: Settings) -> dict[str, str]:
    named = {split: getattr(settings, split) for split in SPLITS if getattr(settings, split) is not None}
    return named or {"": settings.files}


def _entry(row: Row, split: str) -> Entry:
    """A row -> an entry. Raises ValueError saying what is wrong."""
    data = row.data
    messages, answers = _texts(data)
    if problem := splits.message_problem(messages):
        raise ValueError(f"prompt: {problem}")
    for problem in (splits.text_problem(answer) for answer in answers if answer.strip()):
        if problem:
            raise ValueError(f"answer {problem}")
    label = data.get("label")
    if label is not None and not (isinstance(label, bool) and len(answers) == 1):
        raise ValueError(f"label: {label!r}, expected true or false beside exactly one answer")
    id = _id(data)
    group = splits.group_of(messages, answers, label, lines.stem(row.file), id)
    kind = {2: "pref", 1: "sft" if label is None else "pref", 0: "unlabeled"}[len(answers)]
    if (split == "sft" and len(answers) != 1) or (split == "pref" and kind != "pref"):
        wanted = "one answer per row" if split == "sft" else "chosen and rejected, or a label"
        raise ValueError(f"in data.format.{split}: has the keys {', '.join(data)}, expected {wanted}")
    derived = "eval" if lines.is_test(row.file) else kind
    return Entry(row.where, group, split or derived, fixed=bool(split), named=bool(id))


def _id(data: dict[str, Any]) -> str:
    id = data.get("id")
    if id is None:
        return ""
    if isinstance(id, bool) or not isinstance(id, (str, int)) or id == "":
        raise ValueError(f"id: {id!r}, expected a text or a whole number")
    return str(id)


def _texts(data: dict[str, Any]) -> tuple[list[Message], list[str]]:
    """(prompt messages, answers): two answers with the preferred first, one, or none."""
    if "chosen" in data or "rejected" in data:
        if missing := [key for key in ("chosen", "rejected") if key not in data]:
            raise ValueError(f"has no {missing[0]}, expected both sides of the pair")
        return _pair(data)
    if "messages" in data:
        messages = _messages(data["messages"], "messages")
        last = messages[-1:] if messages and messages[-1].role == "assistant" else []
        return messages[: len(messages) - len(last)], [m.content for m in last]
    if "prompt" not in data:
        raise ValueError(f"has no prompt, found the keys {', '.join(map(str, data)) or '(none)'}; expected {KEYS}")
    prompt = _prompt(data["prompt"])
    return prompt, [_answer(data["completion"], prompt, "completion")] if "completion" in data else []


def _pair(data: dict[str, Any]) -> tuple[list[Message], list[str]]:
    if "prompt" in data:
        prompt = _prompt(data["prompt"])
    elif isinstance(data["chosen"], list) and isinstance(data["rejected"], list):
        chosen, rejected = _messages(data["chosen"], "chosen"), _messages(data["rejected"], "rejected")
        common = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen[:-1], rejected[:-1], strict=False))
        prompt = [message for message, _ in common]
    else:
        raise ValueError("has no prompt, expected one beside chosen and rejected texts "
                         "(transcripts with 'Human:' and 'Assistant:' turns are read by data=hh)")
    return prompt, [_answer(data[side], prompt, side) for side in ("chosen", "rejected")]


def _prompt(value: Any) -> list[Message]:
    return [Message("user", value)] if isinstance(value, str) else _messages(value, "prompt")


def _answer(value: Any, prompt: list[Message], key: str) -> str:
    """The text of one side: a text, its assistant message, or the whole conversation that ends with it."""
    if isinstance(value, str):
        return value
    messages = _messages(value, key)
    if len(messages) > 1 and messages[: len(prompt)] == prompt:
        messages = messages[len(prompt):]
    if len(messages) != 1 or messages[0].role != "assistant":
        found = ", ".join(m.role for m in messages) or "nothing"
        raise ValueError(f"{key}: after the prompt comes {found}; expected exactly one assistant message")
    return messages[0].content


def _messages(value: Any, key: str) -> list[Message]:
    if not isinstance(value, list):
        raise ValueError(f"{key}: {type(value).__name__}, expected a text or a list of {{role, content}}")
    for number, item in enumerate(value, 1):
        if not (isinstance(item, dict) and isinstance(item.get("role"), str) and isinstance(item.get("content"), str)):
            raise ValueError(f"{key}: turn {number} is {str(item)[:60]}, expected {{role: text, content: text}}")
    return [Message(item["role"], item["content"]) for item in value]


FORMAT = Format(Settings, EXPECTED, files, read)
