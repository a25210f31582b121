"""JSON lines in the shapes TRL documents ("Dataset formats and types"), plain or conversational.

    {"prompt", "chosen", "rejected"}          a pair; texts or lists of {"role", "content"}
    {"chosen", "rejected"}                    conversations whose common beginning is the prompt
    {"messages"}                              a demonstration; a prompt where the user speaks last
    {"prompt", "completion"}                  a demonstration
    {"prompt"}                                a prompt
    {"prompt", "completion", "label"}, {"messages", "label"}     one answer, desirable or not

Beside them a row may have "id", "system" (a system turn in front), "tools" and "chat_template_kwargs" (both go to the
chat template); a pair may have "rationale", a text that says why chosen is better. A message may have
"reasoning_content" ("reasoning", "thinking"), "tool_calls", "tool_call_id", "name", and in "messages" "train": false or
"weight": 0 where it is no answer to learn from. Every other key is counted by its name. Texts are taken as they are,
with their white space.
"""

import itertools
import json
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
UNTRAINED = "no answer that may be learnt from (train: false, weight: 0)"
_BESIDE = ("id", "label", "system", "tools", "chat_template_kwargs")  # read whatever the shape of the row
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # names of one field; templates read the first
_TURN = ("role", "content", "tool_calls", "tool_call_id", "name", *_THOUGHTS)
_FLAGS = ("train", "weight")  # of a turn of "messages"
_PAIR = ("prompt", "chosen", "rejected", "rationale")
_OURS = ("tools", "messages", "conversation", "chat_template", "add_generation_prompt", "tokenize", "strftime_now",
         "continue_final_message", "documents")  # what a row's chat_template_kwargs may not decide
Answered = tuple[list[Message], list[Message]]  # a prompt and its answers: two, the preferred first; one; none


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
    turns: str = setting("last", choices=("last", "all"))  # of "messages": the answers to learn from, one group each
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
                made = _entries_of(row, split, settings.turns)
                dropped[UNTRAINED] += not made
                for entry in made:
                    texts = [completion.text or completion.more for completion in entry.group.completions]
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


def _entries_of(row: Row, split: str, turns: str) -> list[Entry]:
    """A row -> an entry for every answer to learn from. Raises ValueError saying what is wrong."""
    data, id, template = row.data, id_of(row.data), template_of(row.data)
    found, unread = _texts(data, turns), _unread(data)
    made = []
    for number, (messages, answers) in enumerate(found, 1):
        messages = with_system(messages, data)
        if problem := splits.message_problem(messages):
            raise ValueError(f"prompt: {problem}")
        for problem in (splits.text_problem(answer.content) for answer in answers if answer.content.strip()):
            if problem:
                raise ValueError(f"answer {problem}")
        label = data.get("label")
        if label is not None and not (isinstance(label, bool) and len(answers) == 1):
            raise ValueError(f"label: {label!r}, expected true or false beside exactly one answer")
        kind = {2: "pref", 1: "sft" if label is None else "pref", 0: "unlabeled"}[len(answers)]
        if (split == "sft" and len(answers) != 1) or (split == "pref" and kind != "pref"):
            wanted = "one answer per row" if split == "sft" else "chosen and rejected, or a label"
            raise ValueError(f"in data.format.{split}: has the keys {', '.join(data)}, expected {wanted}")
        group = splits.group_of(messages, [a.content for a in answers], label, lines.stem(row.file),
                                f"{id}/{number}" if id and len(found) > 1 else id, [a.more for a in answers], template,
                                rationale_of(data) if len(answers) == 2 else "")
        derived = "eval" if lines.is_test(row.file) else kind
        made.append(Entry(row.where, group, split or derived, fixed=bool(split), named=bool(id),
                          unread=unread if number == 1 else ()))
    return made


def _unread(data: dict[str, Any]) -> tuple[str, ...]:
    """The keys of a row and of its messages that nothing reads."""
    shape = (_PAIR if "chosen" in data else ("messages",) if "messages" in data else
             ("prompt", "completion"))
    turns = [turn for key in shape if isinstance(data.get(key), list) for turn in data[key]]
    of_turn = (*_TURN, *_FLAGS) if shape == ("messages",) else _TURN
    return (*(key for key in data if key not in (*shape, *_BESIDE)),
            *sorted({f"{key} of a message" for turn in turns for key in turn if key not in of_turn}))


def with_system(messages: list[Message], data: dict[str, Any]) -> list[Message]:
    system = data.get("system")
    if system is None or system == "":
        return messages
    if not isinstance(system, str) or (messages and messages[0].role == "system"):
        raise ValueError(f"system: {str(system)[:60]!r}, expected a text beside a prompt without a system turn")
    return [Message("system", system), *messages]


def template_of(data: dict[str, Any]) -> str:
    """The row's variables of the chat template, as JSON."""
    tools, more = data.get("tools"), data.get("chat_template_kwargs")
    if not (tools is None or (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools))):
        raise ValueError(f"tools: {str(tools)[:60]}, expected a list of JSON schemas")
    if not (more is None or (isinstance(more, dict) and not {*more} & {*_OURS})):
        raise ValueError(f"chat_template_kwargs: {str(more)[:60]}, expected an object of the template's own variables")
    found = {**(more or {}), **({"tools": tools} if tools else {})}
    return as_json(found) if found else ""


def rationale_of(data: dict[str, Any]) -> str:
    value = data.get("rationale")
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    if not isinstance(value, str) or splits.text_problem(value):
        raise ValueError(f"rationale: {str(value)[:60]!r}, expected a text that says why chosen is better, or null")
    return value


def as_json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    if problem := splits.text_problem(text):
        raise ValueError(problem)
    return text


def id_of(data: dict[str, Any]) -> str:
    id = data.get("id")
    if id is None:
        return ""
    if isinstance(id, bool) or not isinstance(id, (str, int)) or id == "":
        raise ValueError(f"id: {id!r}, expected a text or a whole number")
    return str(id)


def _texts(data: dict[str, Any], turns: str) -> list[Answered]:
    """A prompt with its answers; of "messages" one for each answer to learn from."""
    if "chosen" in data or "rejected" in data:
        if missing := [key for key in ("chosen", "rejected") if key not in data]:
            raise ValueError(f"has no {missing[0]}, expected both sides of the pair")
        return [_pair(data)]
    if "messages" in data:
        messages = _messages(data["messages"], "messages")
        if not messages or messages[-1].role != "assistant":
            return [(messages, [])]
        answers = [i for i, m in enumerate(messages) if m.role == "assistant" and trained(data["messages"][i], i + 1)]
        wanted = answers if turns == "all" and data.get("label") is None else answers[-1:]
        return [(messages[:i], [messages[i]]) for i in wanted]
    if "prompt" not in data:
        raise ValueError(f"has no prompt, found the keys {', '.join(map(str, data)) or '(none)'}; expected {KEYS}")
    prompt = _prompt(data["prompt"])
    return [(prompt, [_answer(data["completion"], prompt, "completion")] if "completion" in data else [])]


def trained(item: dict[str, Any], number: int) -> bool:
    """Whether an assistant's turn may be learnt from."""
    flags = {key: item[key] for key in _FLAGS if item.get(key) is not None}
    for key, value in flags.items():
        if value not in (True, False):
            raise ValueError(f"messages: turn {number} has {key} {value!r}, expected true or false, 1 or 0")
    return all(flags.values())


def _pair(data: dict[str, Any]) -> Answered:
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


def _answer(value: Any, prompt: list[Message], key: str) -> Message:
    """One side: a text, its assistant message, or the whole conversation that ends with it."""
    if isinstance(value, str):
        return Message("assistant", value)
    messages = _messages(value, key)
    if len(messages) > 1 and messages[: len(prompt)] == prompt:
        messages = messages[len(prompt):]
    if len(messages) != 1 or messages[0].role != "assistant":
        found = ", ".join(m.role for m in messages) or "nothing"
        raise ValueError(f"{key}: after the prompt comes {found}; expected exactly one assistant message")
    return messages[0]


def _messages(value: Any, key: str) -> list[Message]:
    if not isinstance(value, list):
        raise ValueError(f"{key}: {type(value).__name__}, expected a text or a list of {{role, content}}")
    return [message(item, f"{key}: turn {number}") for number, item in enumerate(value, 1)]


def message(item: Any, where: str) -> Message:
    """A turn {role, content} and what else a template may read of it. Raises ValueError."""
    content = item.get("content") if isinstance(item, dict) else None
    if content is None and isinstance(item, dict) and item.get("tool_calls"):
        content = ""
    if not (isinstance(content, str) and isinstance(item.get("role"), str)):
        raise ValueError(f"{where} is {str(item)[:60]}, expected {{role: text, content: text}}")
    more = {key: item[key] for key in ("tool_calls", "tool_call_id", "name") if item.get(key)}
    thoughts = [item[key] for key in _THOUGHTS if item.get(key)]
    if thoughts and not isinstance(thoughts[0], str):
        raise ValueError(f"{where} has reasoning {str(thoughts[0])[:60]}, expected a text")
    more |= {"reasoning_content": thoughts[0]} if thoughts else {}
    return Message(item["role"], content, as_json(more) if more else "")


FORMAT = Format(Settings, EXPECTED, files, read)
