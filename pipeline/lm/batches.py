"""Cutting groups into micro-batches by a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.lm.examples import Example
from pipeline.lm.packed import unique_tokens


def micro_batches(
    examples: Sequence[Example], tokens: int, costs: Sequence[int] | None = None
) -> list[list[int]]:
    """Cut a global batch into micro-batches of at most `tokens` tokens, never splitting a group.

    `costs`: tokens of each group, None = its unique ones.
    Sorted by length, longest first: an out-of-memory shows at once, and a model that has to stay with padded rows
    wastes little. A group that is longer than the budget goes alone.
    """
    costs = [unique_tokens(e) for e in examples] if costs is None else costs
    cut: list[list[int]] = []
    held = 0
    for i in sorted(range(len(examples)), key=lambda i: (-examples[i].longest, examples[i].id)):
        if cut and held + costs[i] <= tokens:
            cut[-1].append(i)
            held += costs[i]
        else:
            cut.append([i])
            held = costs[i]
    return cut
