"""One pair per prompt by the least satisfied of several reward models (Chakraborty et al. 2024, MaxMin-RLHF).

Every group of users has its reward model, max_pi min_u E[r_u]. What the minimum is taken over is a choice: each
completion's own lowest reward (nobody dislikes it), the reward model with the lowest mean on the prompt, or the one
with the lowest mean over the table, as in the paper's update. That score is stored as "minimum"; the pair is the
largest against the smallest.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from pipeline.config import setting
from pipeline.records import Group
from pipeline.selection.candidates import ends, paired, scored, scores_of
from pipeline.selection.contract import Rule, Selected

MINIMUM = "minimum"


@dataclass(frozen=True)
class Settings:
    """Which scores, on what scale, and where the minimum is taken."""

    scores: tuple[str, ...]
    """Names of two or more scores in Completion.scores (reward.also gives further ones)."""

    level: str = setting("completion", choices=("completion", "prompt", "table"))
    """The lowest reward of each completion, or the reward whose mean is lowest on the prompt or over the table."""

    scale: str = setting("standardise", choices=("standardise", "as_is"))
    """standardise: each score to mean 0 and standard deviation 1 over the table; as_is: they share one scale."""

    def check(self) -> list[tuple[str, str]]:
        problems = []
        if len(set(self.scores)) < 2:
            problems.append(("scores", f"{list(self.scores)} names fewer than two scores; use selection=best_worst"))
        if self.level == "table" and self.scale == "standardise":
            problems.append(("scale", "'standardise' gives every score the mean 0, so level=table needs scale=as_is"))
        return problems


@dataclass(frozen=True)
class Survey:
    """Mean and standard deviation of each score over the table, in the order of the settings."""

    means: tuple[float, ...] = ()
    deviations: tuple[float, ...] = ()


def survey(groups: Iterable[Group], settings: Settings, seed: int = 0) -> Survey:
    """One pass (Welford 1962); a score that never varies gets the deviation 1."""
    number = 0
    means, squares = [0.0] * len(settings.scores), [0.0] * len(settings.scores)
    for group in groups:
        for row in zip(*(scores_of(group, name) for name in settings.scores), strict=True):
            number += 1
            for u, value in enumerate(row):
                off = value - means[u]
                means[u] += off / number
                squares[u] += off * (value - means[u])
    return Survey(tuple(means), tuple((s / max(1, number)) ** 0.5 or 1.0 for s in squares))


def select(group: Group, settings: Settings, seed: int = 0, found: Survey = Survey()) -> Selected:
    """See Rule. found: what `survey` returned; without it scores are as they are."""
    columns = [scores_of(group, name) for name in settings.scores]
    if settings.scale == "standardise" and found.means:
        places = zip(columns, found.means, found.deviations, strict=True)
        columns = [[(value - mean) / deviation for value in column] for column, mean, deviation in places]
    if settings.level == "completion":
        lowest = [min(row) for row in zip(*columns, strict=True)]
    else:
        averages = found.means if settings.level == "table" and found.means else [fmean(column) for column in columns]
        lowest = columns[min(range(len(columns)), key=lambda u: averages[u])]
    return [paired(scored(group, MINIMUM, lowest), *ends(lowest))], ""


RULE = Rule(Settings, select, reads=lambda s: s.scores, stores=(MINIMUM,), ranks=MINIMUM, survey=survey)
