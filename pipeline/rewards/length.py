"""Score by length: 1 within a window, outside of it the share by which the nearer bound is missed (low: n / low, high:
high / n), in [0, 1].
"""

from dataclasses import dataclass
from pathlib import Path

from pipeline.config import setting
from pipeline.lm.settings import ModelRuntime
from pipeline.rewards.checked import each
from pipeline.rewards.contract import ScoreGroups, Scorer


@dataclass(frozen=True)
class Settings:
    low: int = setting(1, low=0)  # of the window, in `unit`
    high: int = setting(200, low=1)  # of the window, in `unit`
    unit: str = setting("words", choices=("words", "characters"))  # what is counted

    def check(self) -> list[tuple[str, str]]:
        return [("high", f"{self.high} is below low, {self.low}")] if self.high < self.low else []


def within(number: int, low: int, high: int) -> float:
    return number / low if number < low else high / number if number > high else 1.0


def scorer(settings: Settings, *, model: Path | None = None, runtime: ModelRuntime | None = None) -> ScoreGroups:
    """See Scorer."""
    def score(text: str) -> float:
        number = len(text.split()) if settings.unit == "words" else len(text)
        return within(number, settings.low, settings.high)

    return each(score)


SCORER = Scorer(Settings, scorer)
