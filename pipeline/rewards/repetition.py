"""Score by what is no repetition: the share of an answer's word n-grams that did not occur earlier in it, in [0, 1]."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.config import setting
from pipeline.lm.settings import ModelRuntime
from pipeline.rewards.checked import each
from pipeline.rewards.contract import ScoreGroups, Scorer


@dataclass(frozen=True)
class Settings:
    n: int = setting(3, low=1)  # words of an n-gram; an answer of fewer scores 1


def fresh(text: str, n: int) -> float:
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def scorer(settings: Settings, *, model: Path | None = None, runtime: ModelRuntime | None = None) -> ScoreGroups:
    """See Scorer."""
    return each(lambda text: fresh(text, settings.n))


SCORER = Scorer(Settings, scorer)
