"""Training texts that share 13 words in a row with an evaluation prompt (Brown et al. 2020, appendix C).

Equal prompts are kept apart when rows are divided; this finds the prompt that stands within another text.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import tables

WORDS = 13
_WORD = re.compile(r"\w+")


def grams(text: str) -> Iterator[tuple[str, ...]]:
    """Every run of WORDS words of a text; of a shorter one none."""
    words = _WORD.findall(text.lower())
    return (tuple(words[i:i + WORDS]) for i in range(len(words) - WORDS + 1))


def shared(folder: Path) -> dict[str, int]:
    """How many groups of sft/, pref/ and unlabeled/ hold a run of the prompts of eval/; empty where none does."""
    asked = {hash(gram) for group in tables.read(folder / "eval") for gram in grams(_prompt(group))}
    found = {split: sum(any(hash(gram) in asked for text in _texts(group) for gram in grams(text))
                        for group in tables.read(folder / split)) for split in ("sft", "pref", "unlabeled") if asked}
    return {f"{split} groups with {WORDS} words of an evaluation prompt": n for split, n in found.items() if n}


def _prompt(group: Any) -> str:
    return "\n".join(m.content for m in group.messages if m.role == "user")


def _texts(group: Any) -> list[str]:
    return [*(m.content for m in group.messages), *(c.text for c in group.completions)]
