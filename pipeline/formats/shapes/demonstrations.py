"""Demonstrations: a prompt with one answer (TRL, Alpaca, Dolly), messages, ShareGPT, Self-Instruct's instances.

A conversation gives its last assistant's turn that may be learnt from, with data.format.turns=all every one. One that
ends with the user is a prompt.
"""

from typing import Any

from pipeline.formats import jsonl, turns
from pipeline.formats.contract import Example, Left, Shape
from pipeline.records import Message

ANSWERS = ("completion", "response", "output", "answer")
TALKS = ("messages", "conversations", "conversation")


def read(data: dict[str, Any], settings: Any) -> list[Example]:
    if isinstance(data.get("instances"), list):
        return _instances(data)
    key = next((key for key in ANSWERS if key in data), "")
    if key:
        return [Example(turns.required(data), [turns.single(data[key], key)])]
    return talk(data, settings)


def talk(data: dict[str, Any], settings: Any) -> list[Example]:
    """The examples of a conversation. Raises Left where no answer of it may be learnt from."""
    key = min((key for key in TALKS if key in data), key=lambda key: data[key] is None)
    found = jsonl.with_system(turns.messages(data[key], key), data)
    if not found or found[-1].role != "assistant":
        return [Example(found)]
    items = [{}] * (len(found) - len(data[key])) + list(data[key])
    learnt = [i for i, m in enumerate(found) if m.role == "assistant" and jsonl.trained(items[i], i + 1)]
    if not learnt:
        raise Left(jsonl.UNTRAINED)
    return [Example(found[:i], [found[i]]) for i in (learnt if settings.turns == "all" else learnt[-1:])]


def _instances(data: dict[str, Any]) -> list[Example]:
    """Self-Instruct (Wang et al. 2023): one instruction with inputs and an output for each."""
    made = []
    for number, one in enumerate(data["instances"], 1):
        if not isinstance(one, dict):
            raise ValueError(f"instances: number {number} is {str(one)[:40]}, expected {{input, output}}")
        asked = turns.instruction(turns.text(data, "instruction"), one.get("input"))
        made.append(Example([Message("user", asked)], [turns.single(one.get("output"), f"instances: output {number}")]))
    if not made:
        raise ValueError("instances: is empty, expected a list of {input, output}")
    return made


_ASKED = ("prompt", "instruction", "question", "query", "input")
SHAPE = Shape("demonstrations", (("messages",), ("conversations",), ("conversation",), ("instruction", "instances"),
                                 *((prompt, answer) for prompt in _ASKED for answer in ANSWERS
                                   if (prompt, answer) != ("question", "answer"))), read, reads=("input",))
