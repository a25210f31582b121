"""One pair per prompt: the sample with the highest score against the one with the lowest (Xu et al. 2023, Sec. 3.2).

The others are discarded. Of equal samples the earlier one counts.
"""

from pipeline.records import Group
from pipeline.selection.candidates import Scored as Settings
from pipeline.selection.candidates import ends, paired, scores_of
from pipeline.selection.contract import Rule, Selected


def select(group: Group, settings: Settings, seed: int = 0) -> Selected:
    """See Rule."""
    return [paired(group, *ends(scores_of(group, settings.score)))], ""


RULE = Rule(Settings, select)
