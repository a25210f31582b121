"""One pair per prompt: the sample with the highest score against the one with the lowest (Xu et al. 2023, Sec. 3.2).

The others are discarded. Ties go to the earlier sample; a prompt whose samples all have one score says nothing and is
dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.build import setting
from pipeline.records import Group
from pipeline.selection.candidates import TIED, usable


@dataclass(frozen=True)
class Settings:
    """Which score ranks the samples, and what happens to cut ones."""

    score: str = "reward"
    """Name of the score in Completion.scores."""

    truncated: str = setting("keep", choices=("keep", "drop"))
    """What to do with samples cut at the token limit. The paper keeps them (N = 4, at most 300 tokens)."""


def select(group: Group, settings: Settings) -> tuple[Group | None, str]:
    """The pair (best, worst) with everything else of the group as it was, or None and the reason.

    Reasons: too_few_samples, truncated, empty, score_not_finite, duplicates, tied_scores.
    Raises UserError where a sample lacks the score.
    """
    found, reason = usable(group, settings.score, settings.truncated == "drop")
    if reason:
        return None, reason
    best = max(found, key=lambda c: c.scores[settings.score])  # max and min return the first of equals
    worst = min(found, key=lambda c: c.scores[settings.score])
    if best.scores[settings.score] == worst.scores[settings.score]:
        return None, TIED
    return replace(group, completions=(best, worst)), ""
