"""One pair per prompt: the sample with the highest score against one drawn from the others.

The UltraFeedback preparation of Tunstall et al. 2023 (Zephyr) and of the reward-augmented recipes; a rejected side that
is not always the worst keeps the pair hard.
"""

from pipeline.records import Group
from pipeline.selection.candidates import Scored as Settings
from pipeline.selection.candidates import best_against_random, paired, scores_of
from pipeline.selection.contract import Rule, Selected


def select(group: Group, settings: Settings, seed: int = 0) -> Selected:
    """See Rule. Every sample but the best is equally likely."""
    best, other = best_against_random(scores_of(group, settings.score), seed, "best_random", group)
    return [paired(group, best, other)], ""


RULE = Rule(Settings, select, seeded=True)
