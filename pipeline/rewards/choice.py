"""Score a multiple choice: 1 where the answer names the right letter (target.answer of target.choices), else 0.

The letter is read where the answer says it: behind "answer is" or "answer:", in \\boxed{...}, at the start of a line
("B) ..."), alone; else where the text of exactly one choice stands in it. An answer that names none is wrong.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.lm.settings import ModelRuntime
from pipeline.records import Target
from pipeline.rewards.checked import against
from pipeline.rewards.contract import Desk, ScoreGroups, Scorer

_WAYS = (r"(?i:answer|choice|option)(?i:\s+is)?\s*:?\s*[*(\[\"']*([A-Z])\b(?!['’]\w)",
         r"\\boxed\{\s*(?:\\text\{)?\(?([A-Z])\b", r"(?m:^)\W*([A-Z])(?:[).:]|\s*$)", r"\(([A-Z])\)")


@dataclass(frozen=True)
class Settings:
    """Nothing to set."""


def letter(text: str, choices: Sequence[str]) -> str | None:
    """The letter an answer names; None where it names none."""
    known = [chr(ord("A") + i) for i in range(len(choices))]
    for way in _WAYS:
        if found := [one for one in re.findall(way, text) if one in known]:
            return str(found[-1])
    named = [one for one, choice in zip(known, choices, strict=True) if choice.casefold() in text.casefold()]
    return named[0] if len(named) == 1 else None


def scorer(settings: Settings, *, model: Path | None = None, runtime: ModelRuntime | None = None,
           desk: Desk) -> ScoreGroups:
    """See Scorer. A prompt without choices scores NaN."""
    def check(target: Target, text: str) -> float:
        return float(letter(text, target.choices) == target.answer.strip().upper())

    return against("choices", check, desk)


SCORER = Scorer(Settings, scorer, desk=True)
