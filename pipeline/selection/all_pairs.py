"""Every pair of a prompt's samples whose scores differ by more than a margin, the widest first."""

from dataclasses import dataclass
from itertools import permutations

from pipeline.config import setting
from pipeline.records import Group
from pipeline.selection.candidates import LOW, numbered, paired, scores_of
from pipeline.selection.contract import Rule, Selected


@dataclass(frozen=True)
class Settings:
    """Which score ranks the samples, and which pairs count."""

    score: str = "reward"
    """Name of the score in Completion.scores."""

    margin: float = setting(0.0, low=0.0)
    """In units of the score; the chosen one must be better by more than this."""

    max_pairs: int | None = setting(None, low=1)
    """Most pairs of one prompt, those of the widest margins; null: all."""


def select(group: Group, settings: Settings, seed: int = 0) -> Selected:
    """See Rule. Equal margins in sample order. Reasons: low_margin."""
    values = scores_of(group, settings.score)
    pairs = [(i, j) for i, j in permutations(range(len(values)), 2) if values[i] - values[j] > settings.margin]
    pairs.sort(key=lambda pair: values[pair[1]] - values[pair[0]])
    made = numbered([paired(group, *pair) for pair in pairs[: settings.max_pairs]])
    return made, "" if made else LOW


RULE = Rule(Settings, select)
