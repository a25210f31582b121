"""What best_worst and best_rest agree on: which of a prompt's samples may stand in a group at all."""

from __future__ import annotations

import math
from collections.abc import Callable

from pipeline.build import nearest
from pipeline.records import LENGTH, Completion, Group, UserError

TRUNCATED = "truncated"
EMPTY = "empty"
NOT_FINITE = "score_not_finite"
DUPLICATE = "duplicates"
TOO_FEW = "too_few_samples"
TIED = "tied_scores"


def usable(group: Group, score: str, drop_truncated: bool, at_least: int = 2) -> tuple[list[Completion], str]:
    """The completions of a group that can be compared, in their order, and "" - or the reason why they are too few.

    Left out, in this order: completions cut at the token limit (if `drop_truncated`), without a token, with a score
    that is NaN or infinite, and repetitions of an earlier completion token for token (a margin loss has no gradient
    between equal completions). The reason names the step after which fewer than `at_least` are left.

    Raises UserError where a completion has no score of that name.
    """
    for completion in group.completions:
        if score not in completion.scores:
            where = f"sample {completion.sample} of {group.id!r}"
            raise UserError(f"selection.score: {where} has no score {score!r}{nearest(score, completion.scores)}")
    steps: list[tuple[str, Callable[[list[Completion]], list[Completion]]]] = [
        (TOO_FEW, list),
        (TRUNCATED, lambda found: [c for c in found if not (drop_truncated and c.finish_reason == LENGTH)]),
        (EMPTY, lambda found: [c for c in found if c.token_ids or c.text]),
        (NOT_FINITE, lambda found: [c for c in found if math.isfinite(c.scores[score])]),
        (DUPLICATE, _distinct),
    ]
    left = list(group.completions)
    for reason, step in steps:
        left = step(left)
        if len(left) < at_least:
            return [], reason
    return left, ""


def _distinct(completions: list[Completion]) -> list[Completion]:
    """Without repetitions of an earlier completion: the same token ids, or the same text where there are no ids."""
    first: dict[tuple[int, ...] | str, Completion] = {}
    for completion in completions:
        first.setdefault(completion.token_ids or completion.text, completion)
    return list(first.values())
