"""Training texts that share 13 words in a row with an evaluation prompt (Brown et al. 2020, appendix C).

Equal prompts are kept apart when rows are divided; this finds the prompt that stands within another text.
"""

import re
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import tables

WORDS = 13
_WORD = re.compile(r"\w+")


def grams(text: str) -> Iterator[tuple[str, ...]]:
    """Every run of WORDS words of a text; of a shorter one none."""
    words = _WORD.findall(text.lower())
    return (tuple(words[i:i + WORDS]) for i in range(len(words) - WORDS + 1))


def shared(folder: Path) -> dict[str, int]:
    """How many groups of sft/, pref/ and unlabeled/ hold a run of the prompts of eval/; empty where none does."""
    asked = _marks(_prompt(group) for group in tables.read(folder / "eval"))
    asked.sort()
    found = {split: sum(_any_of(_marks(_texts(group)), asked) for group in tables.read(folder / split))
             for split in ("sft", "pref", "unlabeled") if len(asked)}
    return {f"{split} groups with {WORDS} words of an evaluation prompt": n for split, n in found.items() if n}


def _marks(texts: Iterable[str]) -> np.ndarray:
    """A number for each run of the texts: 8 bytes, where the set of them would take some hundred."""
    return np.frombuffer(array("q", (hash(gram) for text in texts for gram in grams(text))), np.int64)


def _any_of(marks: np.ndarray, asked: np.ndarray) -> bool:
    """Whether one of the marks is among those asked for, which are sorted."""
    places = np.minimum(np.searchsorted(asked, marks), len(asked) - 1)
    return bool((asked[places] == marks).any())


def _prompt(group: Any) -> str:
    return "\n".join(m.content for m in group.messages if m.role == "user")


def _texts(group: Any) -> list[str]:
    return [*(m.content for m in group.messages), *(c.text for c in group.completions)]
