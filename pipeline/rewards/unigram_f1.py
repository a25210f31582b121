"""Score by unigram F1 against the answer that came with the prompt (target.answer), normalised as ParlAI does.

Lower case, punctuation as blanks, without a, an and the; the overlap counts a word as often as both have it.
"""

import re
import string
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pipeline.lm.settings import ModelRuntime
from pipeline.rewards.checked import against
from pipeline.rewards.contract import Desk, ScoreGroups, Scorer

_PUNCTUATION, _ARTICLES = str.maketrans(dict.fromkeys(string.punctuation, " ")), re.compile(r"\b(?:a|an|the)\b")


@dataclass(frozen=True)
class Settings:
    """Nothing to set."""


def words(text: str) -> Counter[str]:
    return Counter(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def f1(text: str, wanted: str) -> float:
    """2 P R / (P + R) of the words, in [0, 1]; 0 where they have none in common."""
    said, meant = words(text), words(wanted)
    common = sum((said & meant).values())
    return 2 * common / (said.total() + meant.total()) if common else 0.0


def scorer(settings: Settings, *, model: Path | None = None, runtime: ModelRuntime | None = None,
           desk: Desk) -> ScoreGroups:
    """See Scorer."""
    return against("answer", lambda target, text: f1(text, target.answer), desk)


SCORER = Scorer(Settings, scorer, desk=True)
