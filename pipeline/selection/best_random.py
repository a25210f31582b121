"""One pair per prompt: the sample with the highest score against one drawn from the others.

The UltraFeedback preparation of Tunstall et al. 2023 (Zephyr) and of the reward-augmented recipes; a rejected side that
is not always the worst keeps the pair hard.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.records import Group
from pipeline.selection.candidates import TOO_FEW, Selected, ends, generator, paired, scores_of
from pipeline.selection.contract import Rule


@dataclass(frozen=True)
class Settings:
    """Which score says what is best."""

    score: str = "reward"
    """Name of the score in Completion.scores."""


def select(group: Group, settings: Settings, seed: int = 0) -> Selected:
    """See Rule. Every sample but the best is equally likely. Reasons: too_few_samples."""
    values = scores_of(group, settings.score)
    if len(values) < 2:
        return [], TOO_FEW
    best, _ = ends(values)
    others = [i for i in range(len(values)) if i != best]
    return [paired(group, best, generator(seed, "best_random", group.id).choice(others))], ""


RULE = Rule(Settings, select, seeded=True)
