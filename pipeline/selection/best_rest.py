"""1 + L candidates per prompt: the sample with the highest score, then every other distinct one, best first.

The group of MC-PO (Chen et al. 2025): the first is preferred, and the negatives of a step are drawn from the others
while training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.build import setting
from pipeline.records import Group
from pipeline.selection.candidates import TIED, usable


@dataclass(frozen=True)
class Settings:
    """Which score ranks the samples, what happens to cut ones, and how many candidates there must be."""

    score: str = "reward"
    """Name of the score in Completion.scores."""

    truncated: str = setting("keep", choices=("keep", "drop"))
    """What to do with samples cut at the token limit."""

    min_candidates: int = setting(1, low=1)
    """A prompt with fewer distinct samples beside the best one is dropped. Paper: up to 5 candidates."""


def select(group: Group, settings: Settings) -> tuple[Group | None, str]:
    """The group with its completions ranked by score (equal ones in sample order), or None and the reason.

    Reasons: too_few_samples, truncated, empty, score_not_finite, duplicates, tied_scores.
    Raises UserError where a sample lacks the score.
    """
    found, reason = usable(group, settings.score, settings.truncated == "drop", 1 + settings.min_candidates)
    if reason:
        return None, reason
    ranked = sorted(found, key=lambda c: -c.scores[settings.score])
    if ranked[0].scores[settings.score] == ranked[-1].scores[settings.score]:
        return None, TIED
    return replace(group, completions=tuple(ranked)), ""
