"""The best and the worst sample, and behind them every sample as what the policy says unasked.

    y_w, y_l, y_1 .. y_k

for objectives that learn from a pair and, beside it, from fresh samples of the policy without a label (HyPO).
"""

from dataclasses import replace

from pipeline.records import Group
from pipeline.selection.candidates import Scored as Settings
from pipeline.selection.candidates import ends, paired, scores_of
from pipeline.selection.contract import Rule, Selected


def select(group: Group, settings: Settings, seed: int = 0) -> Selected:
    """See Rule. All samples stand behind the pair, the two of the pair too: what is left without them
    would be no draw from the policy.
    """
    pair = paired(group, *ends(scores_of(group, settings.score))).completions
    samples = tuple(sorted(group.completions, key=lambda completion: completion.sample))
    return [replace(group, completions=pair + samples)], ""


RULE = Rule(Settings, select, gives="pair_and_samples", draws=True)
