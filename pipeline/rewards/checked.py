"""Rules that look at one answer at a time, and those that check it against what came with its prompt."""

import math
from collections.abc import Callable

from pipeline.records import Group, Target, target_of
from pipeline.rewards.contract import Desk, ScoreGroups


def each(score: Callable[[str], float]) -> ScoreGroups:
    """Score every answer by its text alone."""
    return lambda groups: [[score(completion.text) for completion in group.completions] for group in groups]


def against(field: str, check: Callable[[Target, str], float | str], desk: Desk) -> ScoreGroups:
    """Score every answer by (what came with its prompt, its text). A prompt whose row had no `field`, and a str that
    says why it cannot be checked, give NaN and a row on the desk.
    """
    def of(group: Group) -> list[float]:
        target = target_of(group)
        if target is None or not vars(target)[field]:
            return [missing(desk, group, k, f"the prompt has no target.{field}") for k in range(len(group.completions))]
        found = [check(target, completion.text) for completion in group.completions]
        return [missing(desk, group, k, one) if isinstance(one, str) else one for k, one in enumerate(found)]

    return lambda groups: [of(group) for group in groups]


def missing(desk: Desk, group: Group, k: int, why: str) -> float:
    """The score of an answer that cannot be checked."""
    desk.rows.append({"id": group.id, "k": k, "why": why})
    return math.nan
