"""Pairs: {"prompt", "chosen", "rejected"}, and what people make of it.

The prompt may stand apart, at the beginning of both sides, or both; sides that differ from it in white space only, or
begin with a system turn that it lacks, have the same prompt. Sides are texts, turns, conversations or HH's transcripts.
`subset` is the part of a benchmark that a pair is of (RewardBench), else its file's name is.
Scores, where there are some: score_chosen and score_rejected, or one of SCORES with another name.
"""

import itertools
from typing import Any

from pipeline.formats import jsonl, turns
from pipeline.formats.contract import Example, Left, Shape
from pipeline.records import Message

SCORES = ("score_{}", "{}_score", "{}_rating", "rating_{}", "{}-rating", "{}_reward", "reward_{}")
TIED, REVERSED = "chosen and rejected have the same score", "the rejected answer has the higher score"
SYSTEM, SPACE = "a system turn that stood in the sides alone", "prompt and sides that differ in white space"
DIFFER = "the two sides differ before the last answer"


def read(data: dict[str, Any], settings: Any) -> list[Example]:
    sides = [_side(data, key) for key in ("chosen", "rejected")]
    prompt = turns.prompt(data)
    found = _common(*sides) if prompt is None else _agreed(prompt, sides)
    fixed = ""
    if prompt is None:
        found = jsonl.with_system(found, data)
    elif len(found) > len(prompt):
        fixed = SYSTEM
    elif any(found[-len(side) + 1:] != side[:-1] for side in sides if len(side) > 1):
        fixed = SPACE
    scores = _scores(data)
    against = "" if not scores or scores[0] > scores[1] else TIED if scores[0] == scores[1] else REVERSED
    if against and settings.ties == "drop":
        raise Left(against)
    return [Example(found, [side[-1] for side in sides], scores=scores, rationale=jsonl.rationale_of(data),
                    fixed=fixed, dataset=str(data.get("subset") or ""), kept=against)]


def _side(data: dict[str, Any], key: str) -> list[Message]:
    if key not in data:
        raise ValueError(f"has no {key}, expected both sides of the pair")
    return turns.answer(data[key], key)


def _common(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """The prompt that both sides begin with."""
    if not turns.same(chosen[:-1], rejected[:-1]):
        raise Left(DIFFER)
    if len(chosen) == 1:
        raise ValueError("has no prompt, expected one beside chosen and rejected; name it with "
                         "data.columns={prompt: KEY}")
    return chosen[:-1]


def _agreed(prompt: list[Message], sides: list[list[Message]]) -> list[Message]:
    """The prompt that stands apart, with the system turn of the sides where only they have one."""
    heads = [side[:-1] for side in sides]
    for key, head in zip(("chosen", "rejected"), heads, strict=True):
        rest = head[1:] if head and head[0].role == "system" and prompt[0].role != "system" else head
        if head and not turns.same(rest, prompt) and not turns.same(head, prompt[-len(head):]):
            roles = ", ".join(m.role for m in itertools.chain(head, sides[0][-1:]))
            raise ValueError(f"{key}: is a conversation ({roles}) that does not begin with the prompt; if the sides "
                             "hold it whole, leave the other out: data.columns={prompt: null}")
    systems = [head[0] for head in heads if len(head) > len(prompt) and head[0].role == "system"]
    if systems and not (len(systems) == 2 and turns.same(systems[:1], systems[1:])):
        raise Left(DIFFER)
    return [*systems[:1], *prompt]


def _scores(data: dict[str, Any]) -> list[float]:
    """Of chosen and rejected; empty where the row has none."""
    beside = data.get("metadata")
    for where in (data, *([beside] if isinstance(beside, dict) else [])):
        for name in SCORES:
            keys = [name.format(side) for side in ("chosen", "rejected")]
            if all(where.get(key) is not None for key in keys):
                return [turns.number(where[key], key) for key in keys]
    return []


SHAPE = Shape("pairs", (("chosen", "rejected"), ("chosen",), ("rejected",),
                        *((key, side) for key in ("instruction", *turns.PROMPTS)
                          for side in ("chosen", "rejected"))), read,
              reads=("instruction", *turns.PROMPTS, "rationale", "metadata", "subset",
                     *(name.format(side) for name in SCORES for side in ("chosen", "rejected"))))
