"""1 + L candidates per prompt: the sample with the highest score, then every other one, best first.

The group of MC-PO (Chen et al. 2025): the first is preferred, and the negatives of a step are drawn from the others
while training.
"""

from dataclasses import dataclass, replace

from pipeline.config import setting
from pipeline.records import Group
from pipeline.selection.candidates import TOO_FEW, best_first, scores_of
from pipeline.selection.contract import LISTS, Rule, Selected


@dataclass(frozen=True)
class Settings:
    """Which score ranks the samples, and how many candidates there must be."""

    score: str = "reward"
    """Name of the score in Completion.scores."""

    min_candidates: int = setting(1, low=1)
    """A prompt with fewer samples beside the best one is dropped. Paper: up to 5 candidates."""


def samples(settings: Settings) -> int:
    return 1 + settings.min_candidates


def select(group: Group, settings: Settings, seed: int = 0) -> Selected:
    """See Rule. Equal samples stay in their order. Reasons: too_few_samples."""
    values = scores_of(group, settings.score)
    if len(values) < samples(settings):
        return [], TOO_FEW
    return [replace(group, completions=tuple(group.completions[i] for i in best_first(values)))], ""


RULE = Rule(Settings, select, gives=LISTS, samples=samples)
