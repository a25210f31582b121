"""From rows to the four splits (sft, pref, unlabeled, eval), so that no prompt is in two of them.

AlpacaFarm's protocol (Dubois et al. 2023, section 3) splits by prompt into SFT : PREF : unlabeled : eval =
10 : 10 : 20 : 0.8. Where a data set lacks a split, its prompts are taken from another one, decided by a hash of the
first user turn: the same on every machine, in any order of the files, and unmoved when rows are added.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pipeline.config import setting
from pipeline.records import ROLES, Completion, Group, Message

SPLITS = ("sft", "pref", "unlabeled", "eval")
# Which split's rows may fill a split, best first: only preferences can be preferences, every row has a prompt.
_SOURCES = {
    "sft": ("sft", "pref"),
    "pref": ("pref",),
    "unlabeled": ("unlabeled", "sft", "pref"),
    "eval": ("eval", "unlabeled", "sft", "pref"),
}
FAULTS = {"identical": "chosen and rejected are the same text", "empty": "the answer is empty"}
ELSEWHERE = "prompt belongs to another split"
REPEATED = "same row again"
REPEATED_PROMPT = "same prompt again"
UNDESIRABLE = "answer labelled undesirable"


@dataclass(frozen=True)
class Shares:
    """How prompts are divided among splits that are filled from the same rows; only the ratios count."""

    sft: float = setting(10, above=0)  # of demonstrations; whole numbers, as in the keys of data imported so far
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


@dataclass(frozen=True)
class Imported:
    """What a format gives: for each split its groups (texts, no token ids), and the rows left out by reason.

    sft: K = 1. pref: K = 2 with the preferred first, or K = 1 with a label. unlabeled, eval: K = 0.
    """

    splits: dict[str, tuple[Group, ...]]
    dropped: dict[str, int]


def message_problem(messages: Sequence[Message]) -> str:
    """What is wrong with a prompt ('' = nothing): an optional system turn, then user and assistant, the user last."""
    for number, message in enumerate(messages, 1):
        if message.role not in ROLES:
            return f"turn {number} has role {message.role!r}, expected one of {', '.join(ROLES)}"
        problem = text_problem(message.content)
        if problem:
            return f"turn {number} ({message.role}) {problem}"
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not turns:
        return "has no prompt, expected at least one user turn"
    first = len(messages) - len(turns) + 1
    for number, message in enumerate(turns):
        expected = "assistant" if number % 2 else "user"
        if message.role != expected:
            return f"turn {first + number} is from {message.role}, expected {expected} (they speak in turn)"
    if turns[-1].role != "user":
        return "the prompt ends with the assistant, expected the user's turn last"
    return ""


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


def fault_problem(fault: str) -> str:
    """The message for a `fault_of`, with the way out."""
    expected = {"identical": "two different answers", "empty": "a text"}[fault]
    return f"{FAULTS[fault]}, expected {expected}; data.format.{fault}=drop leaves such rows out and counts them"


def group_of(messages: Sequence[Message], answers: Sequence[str], label: bool | None, dataset: str, id: str) -> Group:
    """A group from texts. Without an `id` it gets one from its content: 16 hex digits of SHA-256."""
    turns = [[m.role, m.content] for m in messages]
    content = json.dumps([turns, list(answers), label], ensure_ascii=False)
    return Group(
        id=id or hashlib.sha256(content.encode()).hexdigest()[:16],
        messages=tuple(messages),
        completions=tuple(Completion(text=text) for text in answers),
        label=label,
        dataset=dataset,
    )


def prompt_key(group: Group) -> str:
    """The first user turn, normalised: NFKC, lower case, only letters and digits, single spaces.

    The opening and not the whole conversation, so that two depths of one conversation stay on one side.
    """
    text = next(m.content for m in group.messages if m.role == "user")
    plain = unicodedata.normalize("NFKC", text).lower()
    return re.sub(r"[\W_]+", " ", plain).strip() or text


def divide(entries: Sequence[Entry], shares: Shares, limits: Limits, problems: list[str]) -> Imported:
    """Put every entry into one split, fill the splits that have none of their own, cut to the limits.

    Entries of one prompt go to one split together; those that cannot serve there are dropped. `problems` gets the
    ids that two rows of one split share.
    """
    _check_ids(entries, problems)
    dropped: Counter[str] = Counter()
    feeds = _feeds({entry.split for entry in entries})
    keys = [prompt_key(entry.group) for entry in entries]
    by_prompt: dict[str, list[Entry]] = {}
    for key, entry in zip(keys, entries, strict=True):
        by_prompt.setdefault(key, []).append(entry)
    chosen = {key: _choose(key, {e.split for e in same if e.fixed}, {e.split for e in same}, feeds, shares)
              for key, same in by_prompt.items()}
    found: dict[str, list[Group]] = {split: [] for split in SPLITS}
    for key, entry in zip(keys, entries, strict=True):
        split = chosen[key]
        if split not in feeds[entry.split]:
            split = entry.split if entry.fixed else ""
        if not split:
            dropped[ELSEWHERE] += 1
        elif split == "sft" and entry.group.label is False:
            dropped[UNDESIRABLE] += 1
        else:
            found[split].append(_as(split, entry.group))
    splits = {split: _cut(split, _unique(split, groups, dropped), getattr(limits, split), dropped)
              for split, groups in found.items()}
    return Imported(splits, {reason: number for reason, number in sorted(dropped.items()) if number})


def _feeds(there: set[str]) -> dict[str, tuple[str, ...]]:
    """For each split that has rows, the splits its rows go to: its own and those nobody better can fill."""
    source = {split: next((s for s in _SOURCES[split] if s in there), "") for split in SPLITS}
    return {split: tuple(s for s in SPLITS if source[s] == split) for split in there}


def _choose(key: str, fixed: set[str], own: set[str], feeds: dict[str, tuple[str, ...]], shares: Shares) -> str:
    """The split of a prompt: eval if it is an evaluation prompt, where the user put it, or drawn by its hash."""
    if "eval" in own:
        return "eval"
    bound = [split for split in SPLITS if split in fixed and feeds[split] == (split,)]
    options = bound[:1] or [s for s in SPLITS if any(s in feeds[o] for o in own)]
    weights = [getattr(shares, split) for split in options]
    point = _unit("split", key) * sum(weights)
    for split, weight in zip(options, weights, strict=True):
        if point < weight:
            return split
        point -= weight
    return options[0]


def _as(split: str, group: Group) -> Group:
    if split == "pref":
        return group
    if split == "sft":
        return replace(group, completions=group.completions[:1], label=None)
    return replace(group, completions=(), label=None)


def _unique(split: str, groups: Iterable[Group], dropped: Counter[str]) -> list[Group]:
    kept: dict[object, Group] = {}
    for group in groups:
        # Two rows with one prompt are two demonstrations or pairs, but only one prompt to sample from.
        key: object = group.id if split in ("sft", "pref") else group.messages
        if key in kept:
            dropped[REPEATED if split in ("sft", "pref") else REPEATED_PROMPT] += 1
        else:
            kept[key] = group
    return list(kept.values())


def _cut(split: str, groups: list[Group], limit: int | None, dropped: Counter[str]) -> tuple[Group, ...]:
    if limit is None or len(groups) <= limit:
        return tuple(groups)
    dropped[f"over data.format.limits.{split}"] += len(groups) - limit
    kept = {group.id for group in sorted(groups, key=lambda g: (_unit("limit", g.id), g.id))[:limit]}
    return tuple(group for group in groups if group.id in kept)


def _check_ids(entries: Sequence[Entry], problems: list[str]) -> None:
    first: dict[tuple[str, str], str] = {}
    for entry in entries:
        if not entry.named:
            continue
        at = first.setdefault((entry.split, entry.group.id), entry.where)
        if at != entry.where:
            problems.append(f"{entry.where}: id {entry.group.id!r} is used before at {at}, expected each id once; "
                            "rename it or leave the ids out")


def _unit(*parts: str) -> float:
    """A number in [0, 1) from texts, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
