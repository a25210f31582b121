"""Conversations however they are written: what the shapes (pipeline/formats/shapes) read their rows with.

    "text"                                              one user's turn
    "\\n\\nHuman: ...\\n\\nAssistant: ..."                  HH's transcripts, wherever a text may stand
    "Below is an instruction ... ### Instruction: ..."  Alpaca's prompt text: the instruction and its input
    [{"role", "content"}]                               content may be a text or a list of text parts
    [{"from", "value"}]                                 ShareGPT, with function_call and observation

Every function raises ValueError saying what is wrong, `hh.Irregular` for a transcript that is broken.
"""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from pipeline.formats import hh, jsonl
from pipeline.records import Message

BESIDE = ("id", "system", "tools", "chat_template_kwargs", "history")  # read whatever the shape
PROMPTS = ("prompt", "question", "query", "context_messages", "conversations", "conversation", "messages", "input")
_ROLE = {"human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
         "model": "assistant", "observation": "tool", "function_response": "tool", "function_call": "assistant"}
_ALPACA = re.compile(r"\s*Below is an instruction that describes a task.*?### Instruction:\s*(.*?)"
                     r"(?:\s*### Input:\s*(.*?))?\s*### Response:\s*", re.DOTALL)


def messages(value: Any, key: str) -> list[Message]:
    """The turns of a text, of one turn or of a list of them."""
    if isinstance(value, str):
        return _of_text(value)
    items = [value] if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise ValueError(f"{key}: {_name(value)}, expected a text or a list of {{role, content}}")
    return [_turn(item, f"{key}: turn {number}") for number, item in enumerate(items, 1)]


def prompt(data: dict[str, Any]) -> list[Message] | None:
    """The prompt of a row: `instruction` with `input`, or the first of PROMPTS; None where it has none of them."""
    if data.get("instruction") is not None:
        found = _of_text(instruction(text(data, "instruction"), data.get("input")))
    else:
        key = next((key for key in PROMPTS if data.get(key) is not None), None)
        if key is None:
            return None
        found = messages(data[key], key)
    return jsonl.with_system([*_history(data.get("history") or []), *found], data)


def required(data: dict[str, Any]) -> list[Message]:
    """The prompt of a row that must have one."""
    found = prompt(data)
    if found is None:
        raise ValueError(f"has no prompt, found the keys {', '.join(data)}; name it with data.columns={{prompt: KEY}}")
    return found


def prompt_key(data: dict[str, Any]) -> str:
    """The key that `prompt` reads, '' where there is none."""
    return next((key for key in ("instruction", *PROMPTS) if data.get(key) is not None), "")


def instruction(text: str, more: Any) -> str:
    """Alpaca's two fields as one text: a blank line between them; "<noinput>" and its like say that there is none."""
    if more is not None and not isinstance(more, str):
        raise ValueError(f"input: {_name(more)}, expected a text")
    more = "" if more is None or re.sub(r"[^a-z]", "", more.lower()) == "noinput" else more.strip()
    return f"{text.strip()}\n\n{more}" if more else text


def answer(value: Any, key: str) -> list[Message]:
    """One side: a text or an assistant's turn, or the whole conversation that ends with it. A number, true and false
    are the text that they are: exported tables hold "True" and "42" so.
    """
    if isinstance(value, (bool, int, float)):
        value = str(value)
    if isinstance(value, str) and not _transcript(value):
        return [Message("assistant", value)]
    found = hh.transcript(value) if isinstance(value, str) else messages(value, key)
    if not found or found[-1].role != "assistant":
        raise ValueError(f"{key}: ends with {found[-1].role if found else 'nothing'}, expected the assistant's turn")
    return found


def single(value: Any, key: str) -> Message:
    """An answer that is one turn."""
    found = answer(value, key)
    if len(found) != 1:
        raise ValueError(f"{key}: {len(found)} turns, expected one answer")
    return found[0]


def text(data: dict[str, Any], key: str) -> str:
    """A text under a key."""
    if not isinstance(data.get(key), str):
        raise ValueError(f"{key}: {_name(data.get(key))}, expected a text")
    return str(data[key])


def number(value: Any, key: str) -> float:
    """A finite number, which a CSV holds as a text."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{key}: {_name(value)}, expected a finite number")
    return found


def same(one: Sequence[Message], other: Sequence[Message]) -> bool:
    """Whether two conversations differ in white space around their turns at most."""
    return [(m.role, m.content.strip(), m.more) for m in one] == [(m.role, m.content.strip(), m.more) for m in other]


def template(data: dict[str, Any]) -> str:
    """The row's variables of the chat template; ShareGPT holds `tools` as a text."""
    if isinstance(data.get("tools"), str):
        try:
            data = {**data, "tools": json.loads(data["tools"] or "[]")}
        except ValueError as error:
            raise ValueError(f"tools: not JSON ({error})") from None
    return jsonl.template_of(data)


def row_id(data: dict[str, Any]) -> str:
    return jsonl.id_of(data)


def _transcript(text: str) -> bool:
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def _of_text(text: str) -> list[Message]:
    if _transcript(text):
        found = hh.transcript(text)
        return found if found[-1].content else found[:-1]
    if found_in := _ALPACA.fullmatch(text):
        return [Message("user", instruction(*found_in.groups()))]
    return [Message("user", text)]


def _turn(item: Any, where: str) -> Message:
    if isinstance(item, dict) and isinstance(item.get("from"), str) and "value" in item:
        item = _of_sharegpt(item, where)
    if isinstance(item, dict) and isinstance(item.get("content"), list):
        item = {**item, "content": _parts(item["content"], where)}
    if isinstance(item, dict) and isinstance(item.get("role"), str):
        item = {**item, "role": _ROLE.get(item["role"], item["role"])}
    return jsonl.message(item, where)


def _of_sharegpt(item: dict[str, Any], where: str) -> dict[str, Any]:
    turn = {**{key: value for key, value in item.items() if key not in ("from", "value")}, "role": item["from"],
            "content": item["value"]}
    if item["from"] != "function_call":
        return turn
    try:
        call = json.loads(item["value"])
        return {**turn, "content": "", "tool_calls": [{"type": "function", "function": one}
                                                      for one in (call if isinstance(call, list) else [call])]}
    except (TypeError, ValueError):
        raise ValueError(f"{where}: a function_call that is no JSON: {str(item['value'])[:60]}") from None


def _parts(parts: list[Any], where: str) -> str:
    texts = [part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None for part in parts]
    if wrong := next((part for part, text in zip(parts, texts, strict=True) if not isinstance(text, str)), None):
        raise ValueError(f"{where} has the part {str(wrong)[:60]}, expected text parts alone")
    return "".join(map(str, texts))


def _history(turns: Any) -> list[Message]:
    good = isinstance(turns, list) and all(
        isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn) for turn in turns)
    if not good:
        raise ValueError(f"history: {str(turns)[:60]}, expected a list of [instruction, answer]")
    return [Message(role, turn[at]) for turn in turns for at, role in enumerate(("user", "assistant"))]


def _name(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
