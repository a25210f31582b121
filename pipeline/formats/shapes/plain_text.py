"""Plain text: a row is a line of a .txt file (a story, where lines "<|endoftext|>" divide them), or {"text"}.

The first data.format.prompt_words words are the prompt, the rest is a demonstration of how it goes on; a text that has
no more words is left out. HH's transcripts are conversations.
"""

import re
from typing import Any

from pipeline.formats import turns
from pipeline.formats.contract import Example, Left, Shape
from pipeline.records import Message

BLANK, SHORT = "an empty line", "a text that is no longer than a prompt"


def read(data: dict[str, Any], settings: Any) -> list[Example]:
    text = turns.text(data, "text")
    if not text.strip():
        raise Left(BLANK)
    found = turns.messages(text, "text")
    if len(found) > 1:
        return [Example(found[:-1], found[-1:]) if found[-1].role == "assistant" else Example(found)]
    begun = re.match(rf"\s*(?:\S+\s+){{{settings.prompt_words}}}(?=\S)", text)
    if begun is None:
        raise Left(SHORT)
    return [Example([Message("user", begun.group().strip())], [Message("assistant", text[begun.end():].rstrip())])]


SHAPE = Shape("plain text", (("text",),), read)
