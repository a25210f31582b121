"""Score by the final answer of a problem: 1 where it is the row's (target.answer), else 0.

The final answer stands behind the last "####" (GSM8K), else in the last \\boxed{...}, else behind the last "answer is"
or "answer:", else it is the last number. Numbers are compared as numbers: 1,234.50 $ is 1234.5, 1/2 and \\frac{1}{2}
are 0.5; anything else is compared as text without spaces and case.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from pipeline.config import setting
from pipeline.lm.settings import ModelRuntime
from pipeline.records import Target
from pipeline.rewards.checked import against
from pipeline.rewards.contract import Desk, ScoreGroups, Scorer

_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?|-?\.\d+")
_SAID = re.compile(r"answer\s*(?:is\b|:)[\s:*]*", re.IGNORECASE)
_NOISE = re.compile(r"\\text\{[^}]*\}|\\(?:left|right|!|,|;|%|\$)|[$%,\s*]|\.$")
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}")
_PLAIN = re.compile(r"-?(?:\d+(?:\.\d*)?|\.\d+)(?:/\d+)?")


@dataclass(frozen=True)
class Settings:
    """Where the final answer is looked for."""

    where: str = setting("anywhere", choices=("anywhere", "marked"))
    """marked: behind "####" or in \\boxed{...} only, an answer without either scores 0."""


def final(text: str, where: str = "anywhere") -> str | None:
    """The final answer of a solution, as it is written; None where there is none."""
    if "####" in text:
        return text.rpartition("####")[2].strip().split("\n")[0]
    if (start := text.rfind("\\boxed{")) >= 0:
        return _braced(text[start + len("\\boxed{") :])
    if where == "marked":
        return None
    if said := list(_SAID.finditer(text)):
        rest = text[said[-1].end() :].split("\n")[0]
        number = _NUMBER.search(rest)
        return number[0] if number else rest.strip()
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def _braced(text: str) -> str:
    """Up to the bracket that closes."""
    depth = 1
    for i, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:i]
    return text


def same(one: str, other: str) -> bool:
    """Whether two final answers are one number, or one text."""
    return value(one) == value(other)


def value(text: str) -> Fraction | str:
    """A final answer as a number, else as text without what does not matter."""
    plain = _NOISE.sub("", _FRACTION.sub(r"\1/\2", text.strip())).casefold()
    if _PLAIN.fullmatch(plain):
        over, _, under = plain.partition("/")
        if int(under or 1):
            return Fraction(over) / int(under or 1)
    return plain


def scorer(settings: Settings, *, model: Path | None = None, runtime: ModelRuntime | None = None,
           desk: Desk) -> ScoreGroups:
    """See Scorer. A prompt without a right answer scores NaN."""
    def check(target: Target, text: str) -> float:
        right = target.answer.rpartition("####")[2]  # a whole solution, as GSM8K's rows have it
        found = final(text, settings.where)
        return float(found is not None and same(found, right))

    return against("answer", check, desk)


SCORER = Scorer(Settings, scorer, desk=True)
