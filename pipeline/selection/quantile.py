"""One pair per prompt: the best sample against the one nearest to mean - 2 sigma of the prompt's scores.

Xiao et al. 2025: the worst of many samples is often degenerate and teaches little, so with many samples per prompt the
rejected side is taken at a fixed place of the score's distribution. Sigma is the standard deviation of the prompt's own
scores (divided by n). With few samples nothing lies that low, and the rule is best against worst.
"""

from dataclasses import dataclass
from statistics import fmean, pstdev

from pipeline.config import setting
from pipeline.records import Group
from pipeline.selection.candidates import ends, paired, scores_of
from pipeline.selection.contract import Rule, Selected


@dataclass(frozen=True)
class Settings:
    """Which score ranks the samples, and where the rejected one stands."""

    score: str = "reward"
    """Name of the score in Completion.scores."""

    sigmas: float = setting(2.0)
    """The rejected one is nearest to mean - sigmas * standard deviation; negative: above the mean."""


def select(group: Group, settings: Settings, seed: int = 0) -> Selected:
    """See Rule. Of equally near samples the earlier one."""
    values = scores_of(group, settings.score)
    best, _ = ends(values)
    target = fmean(values) - settings.sigmas * pstdev(values)
    others = [i for i in range(len(values)) if i != best]
    return [paired(group, best, min(others, key=lambda i: abs(values[i] - target)))], ""


RULE = Rule(Settings, select)
