"""What preference training did to log-probs: of both sides of pairs, and token by token around their first difference.

Log-probs are in nats, per token, of a completion's tokens in order. "Reference" is the model training began from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import statistics

SIDES = ("chosen", "rejected", "chosen_reference", "rejected_reference")


@dataclass(frozen=True)
class PairLogps:
    """Token log-probs of one pair under policy and reference, and the tokens themselves."""

    chosen_ids: Sequence[int]
    rejected_ids: Sequence[int]
    chosen: Sequence[float]
    rejected: Sequence[float]
    chosen_reference: Sequence[float]
    rejected_reference: Sequence[float]


@dataclass(frozen=True)
class PairSummary:
    """Means over pairs, in nats; shares in [0, 1]."""

    pairs: int
    chosen_logp: float  # sum over the completion's tokens
    rejected_logp: float
    chosen_logp_reference: float
    rejected_logp_reference: float
    chosen_log_ratio: float  # policy less reference; below 0: the preferred answers became less likely (Smaug)
    rejected_log_ratio: float
    margin: float  # chosen_log_ratio - rejected_log_ratio
    chosen_less_likely: float  # share of pairs whose preferred answer lost probability
    ranking_accuracy: float  # share with a higher mean token log-prob of the preferred answer
    reference_ranking_accuracy: float  # the same under the reference
    implicit_accuracy: float  # share whose preferred answer gained more than the other: log-ratio above
    edit_distance: float  # between the two answers, normalised, on tokens; in [0, 1]


def first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """Index of the first token in which two completions differ: the shorter one's length where it begins the other."""
    differing = (index for index, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differing, min(len(a), len(b)))


def summarise(pairs: Sequence[PairLogps]) -> PairSummary:
    """The means over the pairs. Raises ValueError for none."""
    a = [sum(p.chosen) - sum(p.chosen_reference) for p in pairs]
    b = [sum(p.rejected) - sum(p.rejected_reference) for p in pairs]
    sums = {side: statistics.mean([sum(getattr(p, side)) for p in pairs]) for side in SIDES}
    return PairSummary(
        pairs=len(pairs), chosen_logp=sums["chosen"], rejected_logp=sums["rejected"],
        chosen_logp_reference=sums["chosen_reference"], rejected_logp_reference=sums["rejected_reference"],
        chosen_log_ratio=statistics.mean(a),
        rejected_log_ratio=statistics.mean(b),
        margin=statistics.mean([x - y for x, y in zip(a, b, strict=True)]),
        chosen_less_likely=statistics.mean([x < 0 for x in a]),
        ranking_accuracy=statistics.mean(
            [_above(statistics.mean(p.chosen), statistics.mean(p.rejected)) for p in pairs]),
        reference_ranking_accuracy=statistics.mean(
            [_above(statistics.mean(p.chosen_reference), statistics.mean(p.rejected_reference)) for p in pairs]),
        implicit_accuracy=statistics.mean([_above(x, y) for x, y in zip(a, b, strict=True)]),
        edit_distance=statistics.mean(
            [statistics.normalised_edit_distance(p.chosen_ids, p.rejected_ids) for p in pairs]))


def _above(one: float, other: float) -> float:
    """1 above, 0 below, a tie half: an unchanged policy ranks nothing by its implicit reward and stands at 1/2."""
    return 0.5 if one == other else float(one > other)


def around_first_difference(pairs: Sequence[PairLogps], window: int) -> list[dict[str, Any]]:
    """Mean token log-probs at offsets -window .. window from the first differing token (Pal et al. 2024, figure 3).

    One row per offset that any pair reaches: {offset, pairs, chosen, rejected, chosen_reference, rejected_reference}.
    `pairs` have a token there on both sides. Before offset 0 both sides are the same tokens.
    """
    rows: list[dict[str, Any]] = []
    for offset in range(-window, window + 1):
        found: dict[str, list[float]] = {side: [] for side in SIDES}
        for pair in pairs:
            at = first_difference(pair.chosen_ids, pair.rejected_ids) + offset
            if 0 <= at < min(len(pair.chosen_ids), len(pair.rejected_ids)):
                for side in SIDES:
                    found[side].append(getattr(pair, side)[at])
        if found["chosen"]:
            rows.append({"offset": offset, "pairs": len(found["chosen"]),
                         **{side: statistics.mean(values) for side, values in found.items()}})
    return rows


def by_place(pairs: Sequence[PairLogps]) -> dict[str, dict[str, float | None]]:
    """Mean token log-prob before, at and after the first differing token: {place: {side: nats, or None: no token}}."""
    found: dict[str, dict[str, list[float]]] = {p: {s: [] for s in SIDES} for p in ("before", "at", "after")}
    for pair in pairs:
        at = first_difference(pair.chosen_ids, pair.rejected_ids)
        for side in SIDES:
            values = getattr(pair, side)
            found["before"][side] += values[:at]
            found["at"][side] += values[at : at + 1]
            found["after"][side] += values[at + 1 :]
    return {place: {side: statistics.mean(values) if values else None for side, values in sides.items()}
            for place, sides in found.items()}
