"""One pair per prompt: the sample with the highest score against the one with the lowest (Xu et al. 2023, Sec. 3.2).

The others are discarded. Of equal samples the earlier one counts.
"""

from pipeline.records import Group
from pipeline.selection.candidates import TOO_FEW, ends, paired, scores_of
from pipeline.selection.candidates import Scored as Settings
from pipeline.selection.contract import Rule, Selected


def select(group: Group, settings: Settings, seed: int = 0) -> Selected:
    """See Rule. Reasons: too_few_samples."""
    values = scores_of(group, settings.score)
    if len(values) < 2:
        return [], TOO_FEW
    return [paired(group, *ends(values))], ""


RULE = Rule(Settings, select)
