"""The four splits (sft, pref, unlabeled, eval): what a row of one is, and what a format gives.

How rows are divided among them: pipeline.formats.divide.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import setting
from pipeline.errors import Problems
from pipeline.records import ROLES, Completion, Group, Message

SPLITS = ("sft", "pref", "unlabeled", "eval")
FAULTS = {"identical": "chosen and rejected are the same text", "empty": "the answer is empty"}


@dataclass(frozen=True)
class Shares:
    """How prompts are divided among splits that are filled from the same rows; only the ratios count."""

    sft: float = setting(10, low=0)  # of demonstrations; whole numbers, as in the keys of data imported so far
    pref: float = setting(10, above=0)  # of pairs
    unlabeled: float = setting(20, low=0)  # of prompts to sample from
    eval: float = setting(0.8, low=0)  # of prompts to evaluate on


@dataclass(frozen=True)
class Limits:
    """The most rows of each split; null: all. What is kept is decided by hash, so a larger limit only adds."""

    sft: int | None = setting(None, low=1)  # demonstrations; null: all
    pref: int | None = setting(None, low=1)  # pairs; null: all
    unlabeled: int | None = setting(None, low=1)  # prompts to sample from; null: all
    eval: int | None = setting(None, low=1)  # prompts to evaluate on; null: all


@dataclass(frozen=True)
class Entry:
    """A row as a group, with the split it is made for."""

    where: str  # file:line
    group: Group
    split: str
    fixed: bool = False  # the user named the split, so the row is not left out for a prompt that is elsewhere too
    named: bool = False  # the id comes from the row, so it has to be unique
    unread: tuple[str, ...] = ()  # keys of the row that nothing reads: counted by name
    key: str = ""  # rows with the same one go to one split; '': prompt_key of the group


@dataclass(frozen=True)
class Imported:
    """What a format gives: how many groups (texts, no token ids) each split has, the rows left out by reason, and the
    groups themselves, read again and never held.

    sft: K = 1. pref: K = 2 with the preferred first, or K = 1 with a label. unlabeled, eval: K = 0.
    """

    counts: dict[str, int]
    dropped: dict[str, int]
    overlap: int  # evaluation prompts that open like a training one: 0 unless the files themselves overlap
    groups: Callable[..., Iterator[tuple[str, Group]]]  # (split, group) in the order of the rows
    unread: dict[str, int] = field(default_factory=dict)  # how many rows have a key that nothing reads, by its name
    kinds: dict[str, int] = field(default_factory=dict)  # of the preferences: pairs, lists, labels
    facts: dict[str, int] = field(default_factory=dict)  # what else is counted: "rows", "read as pairs"
    compared: bool = False  # whether training texts are compared with evaluation prompts by their 13-grams


def lacking(imported: Imported, where: str, wanted: dict[str, str]) -> list[str]:
    """Two answers or more ("pairs"), no more than two ("two"), more ("lists"), rationales: where the preferences are
    otherwise. wanted: what -> why and the way out; where: the beginning of a message.
    """
    problems = list[str]()
    pairs, lists, labels = (imported.kinds.get(kind, 0) for kind in ("pairs", "lists", "labels"))
    if "pairs" in wanted and labels:
        apart = "; data.format.only=pairs leaves them out" if pairs + lists and imported.compared else ""
        beside = f" beside {pairs + lists} pairs and lists" if pairs + lists else ""
        problems.append(f"{where} holds single answers with a label{beside}, and {wanted['pairs']}{apart}")
    if "two" in wanted and lists:
        problems.append(f"{where} holds {lists} lists of more than two answers, and {wanted['two']}")
    if "lists" in wanted and not lists:
        problems.append(f"{where} holds {pairs} pairs and no list of more than two answers, and {wanted['lists']}")
    if "rationales" in wanted and not any(g.rationale for split, g in imported.groups() if split == "pref"):
        problems.append(f"{where} holds no preference with a rationale, and {wanted['rationales']}")
    return problems


_NEXT = {"": ("user",), "user": ("assistant",), "assistant": ("user",), "tool": ("assistant", "tool")}


def message_problem(messages: Sequence[Message]) -> str:
    """What is wrong with a prompt ('' = nothing): an optional system turn, which may be empty, then user and assistant,
    the user last. A tool speaks where the assistant called it, and may be the last as well.
    """
    for number, message in enumerate(messages, 1):
        if message.role not in ROLES:
            return f"turn {number} has role {message.role!r}, expected one of {', '.join(ROLES)}"
        bare = message.role == "system" or calls(message)
        if (message.content.strip() or not bare) and (problem := text_problem(message.content)):
            return f"turn {number} ({message.role}) {problem}"
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not turns:
        return "has no prompt, expected at least one user turn"
    first, allowed = len(messages) - len(turns) + 1, _NEXT[""]
    for number, message in enumerate(turns):
        if message.role not in allowed:
            return f"turn {first + number} is from {message.role}, expected {' or '.join(allowed)} (they speak in turn)"
        allowed = ("tool",) if calls(message) else _NEXT[message.role]
    if turns[-1].role == "assistant":
        return "the prompt ends with the assistant, expected the user's turn last"
    return ""


def calls(message: Message) -> bool:
    """Whether the turn calls tools."""
    return bool(message.more) and "tool_calls" in json.loads(message.more)


def text_problem(text: str) -> str:
    """What is wrong with a text ('' = nothing)."""
    if not text.strip():
        return "is empty, expected a text"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"holds half a surrogate pair at character {error.start + 1}, expected valid Unicode"
    return ""


def fault_of(answers: Sequence[str]) -> str:
    """"empty" or "identical" (a key of FAULTS) for answers nothing can be learnt from, '' for good ones."""
    texts = [answer.strip() for answer in answers]
    if not all(texts):
        return "empty"
    return "identical" if len(texts) == 2 and texts[0] == texts[1] else ""


def faulty(answers: Sequence[str], settings: Any, where: str, problems: Problems, dropped: Counter[str]) -> bool:
    """Whether the row at `where` teaches nothing; then it is counted or a problem, as `settings` says of its fault."""
    fault = fault_of(answers)
    if fault and getattr(settings, fault) == "drop":
        dropped[FAULTS[fault]] += 1
    elif fault:
        problems.add(f"{where}: {fault_problem(fault)}")
    return bool(fault)


def fault_problem(fault: str) -> str:
    """The message for a `fault_of`, with the way out."""
    expected = {"identical": "two different answers", "empty": "a text"}[fault]
    return f"{FAULTS[fault]}, expected {expected}; data.format.{fault}=drop leaves such rows out and counts them"


def group_of(
    messages: Sequence[Message], answers: Sequence[str], label: bool | None, dataset: str, id: str,
    more: Sequence[str] = (), template: str = "", rationale: str = "", scores: Sequence[float] = (), target: str = "",
) -> Group:
    """A group from texts. Without an `id` it gets one from its content: 16 hex digits of SHA-256.

    more: of each answer, as Message.more; none where it is empty. template: as Group.template.
    rationale: why the first answer is better. scores: of each answer, as its score "given". target: as Group.target.
    """
    turns = [[m.role, m.content, *([m.more] if m.more else [])] for m in messages]
    beside = [list(more), template] if template or any(more) else []
    beside += [rationale] if rationale else []
    content = json.dumps([turns, list(answers), label, *beside], ensure_ascii=False)
    given = [{"given": score} for score in scores] or [{} for _ in answers]
    made = zip(answers, more or [""] * len(answers), given, strict=True)
    return Group(id=id or hashlib.sha256(content.encode()).hexdigest()[:16], messages=tuple(messages),
                 completions=tuple(Completion(text, more=beside, scores=one) for text, beside, one in made),
                 label=label, dataset=dataset, template=template,
                 rationale=Completion(rationale) if rationale else None, target=target)


def prompt_key(group: Group) -> str:
    """The first user turn, normalised: NFKC, lower case, only letters and digits, single spaces.

    The opening and not the whole conversation, so that two depths of one conversation stay on one side.
    """
    text = next(m.content for m in group.messages if m.role == "user")
    plain = unicodedata.normalize("NFKC", text).lower()
    return re.sub(r"[\W_]+", " ", plain).strip() or text


Read = Callable[[Problems, "Counter[str]"], Iterator[Entry]]  # the rows once more; what is wrong, what is left out


def evaluation(groups: Sequence[Group]) -> Imported:
    """A benchmark's prompts, few enough to be held."""
    return Imported({**dict.fromkeys(SPLITS, 0), "eval": len(groups)}, {}, 0, lambda: (("eval", g) for g in groups))
