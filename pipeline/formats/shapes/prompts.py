"""Prompts alone: texts, conversations that end with the user, HH's transcripts that end with "Assistant:"."""

from typing import Any

from pipeline.formats import turns
from pipeline.formats.contract import Example, Shape


def read(data: dict[str, Any], settings: Any) -> list[Example]:
    return [Example(turns.required(data))]


SHAPE = Shape("prompts", (("prompt",), ("instruction",), ("question",), ("query",), ("context_messages",)), read,
              reads=("input",))
