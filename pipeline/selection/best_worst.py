"""One pair per prompt: the sample with the highest score against the one with the lowest (Xu et al. 2023, Sec. 3.2).

The others are discarded. Of equal samples the earlier one counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.records import Group
from pipeline.selection.candidates import TOO_FEW, Selected, ends, paired, scores_of
from pipeline.selection.contract import Rule


@dataclass(frozen=True)
class Settings:
    """Which score ranks the samples."""

    score: str = "reward"
    """Name of the score in Completion.scores."""


def select(group: Group, settings: Settings, seed: int = 0) -> Selected:
    """See Rule. Reasons: too_few_samples."""
    values = scores_of(group, settings.score)
    if len(values) < 2:
        return [], TOO_FEW
    return [paired(group, *ends(values))], ""


RULE = Rule(Settings, select)
