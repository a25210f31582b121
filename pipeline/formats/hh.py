"""Anthropic's helpful/harmless transcripts (Bai et al. 2022; Ganguli et al. 2022), by folder or file.

    {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": ...}    the last assistant turn is what was compared
    {"prompt": "\\n\\nHuman: ...\\n\\nAssistant:"}                        a prompt to sample from

The turns become messages, white space around them removed. There are no demonstrations, so a part of the pairs gives
its chosen answers to `sft` and is not used as pairs. Files named *.test.* give `eval`.
A few rows are irregular (two turns of one speaker, an empty turn, a speaker's name inside a turn, sides that differ
before the last answer or not at all); they are left out and counted.
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
from pipeline.formats.lines import Row
from pipeline.formats.splits import Entry, Imported, Limits, Shares
from pipeline.records import Message

EXPECTED = "a folder of .jsonl or .jsonl.gz files with HH transcripts, such as helpful-base.train.jsonl.gz, or one file"
_TURN = re.compile(r"\n\n(Human|Assistant):")
_SPEAKER = re.compile(r"\b(Human|Assistant)s?:")
_ROLE = {"Human": "user", "Assistant": "assistant"}
DIFFER = "the two sides differ before the last answer"
IDENTICAL = splits.FAULTS["identical"]
EMPTY = "a turn is empty"
TURNS = "human and assistant do not speak in turn"
INSIDE = "a speaker's name inside a turn"


@dataclass(frozen=True)
class Settings:
    """What to read and how much of it."""

    files: str = "**/*.json*"  # glob under the root
    irregular: str = setting("drop", choices=("drop", "error"))  # broken turns or equal sides: drop counts them
    shares: Shares = field(default_factory=Shares)
    limits: Limits = field(default_factory=Limits)


class Irregular(Exception):
    """A row of the kind the data set is known to hold."""


def files(root: Path, settings: Settings) -> list[Path]:
    """The files `read` will read, sorted. Raises UserError if there are none."""
    return lines.find(root, settings.files, "data.format.files", EXPECTED)


def read(root: Path, settings: Settings) -> Imported:
    """All groups by split. Raises UserError with every row that is not a transcript."""
    return divide(partial(_entries, files(root, settings), settings), settings.shares, settings.limits)


def _entries(found: list[Path], settings: Settings, problems: Problems, dropped: Counter[str]) -> Iterator[Entry]:
    for row in lines.rows(found, problems):
        with lines.reported(row, problems):
            try:
                yield _entry(row)
            except Irregular as reason:
                dropped[str(reason)] += 1
                if settings.irregular == "error":
                    problems.add(f"{row.where}: {reason}; data.format.irregular=drop leaves such rows out")


def transcript(text: Any) -> list[Message]:
    """The turns of a transcript; a last "Assistant:" with nothing after it is an empty last turn.

    Raises ValueError if it is no transcript, Irregular if its turns are not as they should be.
    """
    if not isinstance(text, str):
        raise ValueError(f"{type(text).__name__}, expected a transcript")
    head, *pieces = _TURN.split("\n\n" + text.lstrip())
    if head.strip() or pieces[:1] != ["Human"]:
        raise ValueError(f"begins with {text[:40]!r}, expected a transcript that begins with '\\n\\nHuman: '")
    messages = [Message(_ROLE[who], said.strip()) for who, said in zip(pieces[::2], pieces[1::2], strict=True)]
    roles = [m.role for m in messages]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise Irregular(TURNS)
    if not all(m.content for m in messages[:-1]):
        raise Irregular(EMPTY)
    if any(name in m.content for m in messages for name in _ROLE) and any(_SPEAKER.search(m.content) for m in messages):
        raise Irregular(INSIDE)
    return messages


def _entry(row: Row) -> Entry:
    data = row.data
    if "chosen" in data and "rejected" in data:
        chosen, rejected = _side(data, "chosen"), _side(data, "rejected")
        if chosen[:-1] != rejected[:-1]:
            raise Irregular(DIFFER)
        answers = [chosen[-1].content, rejected[-1].content]
        if not all(answers):
            raise Irregular(EMPTY)
        if answers[0] == answers[1]:
            raise Irregular(IDENTICAL)
        messages, split, keys = chosen[:-1], "pref", ["chosen", "rejected"]
    elif "prompt" in data:
        turns = _side(data, "prompt")
        messages, answers, split, keys = turns[:-1], [], "unlabeled", ["prompt"]
        if turns[-1].content:
            raise ValueError("prompt: ends with an answer, expected it to end with '\\n\\nAssistant:'")
    else:
        raise ValueError(f"has the keys {', '.join(data) or '(none)'}, expected chosen and rejected, or prompt; "
                         "name the files to read with data.format.files=GLOB")
    for text in [m.content for m in messages] + answers:
        if problem := splits.text_problem(text):
            raise ValueError(f"a turn {problem}")
    group = splits.group_of(messages, answers, None, lines.stem(row.file), "")
    return Entry(row.where, group, "eval" if lines.is_test(row.file) else split,
                 unread=tuple(key for key in data if key not in keys))


def _side(data: dict[str, Any], key: str) -> list[Message]:
    try:
        return transcript(data[key])
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


FORMAT = Format(Settings, EXPECTED, files, read)
