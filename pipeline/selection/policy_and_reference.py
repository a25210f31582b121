"""A sample of the policy against a sample of the reference for the same prompt, and the reference's once more.

    chosen, rejected, y~        y ~ policy, y~ ~ reference; chosen and rejected are the two, the better one first

for objectives that explore: what they lower is the reference's own sample, whether it won or lost (XPO, Xie et al.
2024, Alg. 1). The reference's samples are a table of their own beside the policy's.

Sample j of both models has the same seed, and before any training they are one model, so y_j never meets y~_j: sample j
of the policy is set against the next one of the reference.
"""

from dataclasses import dataclass, replace

from pipeline.config import setting
from pipeline.records import Group
from pipeline.selection.candidates import TOO_FEW, ends, numbered, paired, scores_of
from pipeline.selection.contract import Rule, Selected


@dataclass(frozen=True)
class Settings:
    """Which score compares, and how many comparisons a prompt gives."""

    score: str = "reward"
    """Name of the score in Completion.scores."""

    pairs: int = setting(1, low=1)
    """Comparisons per prompt, each of two samples of its own. The algorithm makes one."""


def samples(settings: Settings) -> int:
    return max(2, settings.pairs)


def select(group: Group, settings: Settings, seed: int = 0, other: Group | None = None) -> Selected:
    """See Rule. other: the prompt's samples of the reference. At equal scores the policy's sample counts
    as better (with filters.ties=keep). Reasons: too_few_samples.
    """
    ours = {c.sample: c for c in group.completions}
    theirs = {c.sample: c for c in other.completions} if other is not None else {}
    order = sorted(ours.keys() & theirs.keys())
    if len(order) < samples(settings):
        return [], TOO_FEW
    made = []
    for place in range(settings.pairs):
        sample = theirs[order[(place + 1) % len(order)]]
        met = replace(group, completions=(ours[order[place]], sample))
        met = paired(met, *ends(scores_of(met, settings.score)))
        made.append(replace(met, completions=(*met.completions, sample)))
    return numbered(made), ""


RULE = Rule(Settings, select, gives="pair_and_copy", samples=samples, draws=True, beside=True)
