"""Whether an iteration may go on: from two evaluations against the same baseline to reasons for stopping it.

A rule whose numbers are missing cannot be decided. It does not stop the run; it is reported as undecided.
"""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Standing:
    """What a gate looks at of one policy. None: there is no such number, or it is not finite."""

    win_rate: float | None  # against the baseline all iterations share, in [0, 1]; the baseline's own: 0.5
    judged: float | None  # mean of the score that judges; None also where preferences from a file judged
    learned: float | None  # mean of the score the loop optimises
    tokens: float | None  # mean length of an answer


@dataclass(frozen=True)
class Rules:
    """What stops an iteration."""

    win_rate_fall: float | None  # share: the judge sees a fall by more than this while the learned reward rises
    length_growth: float | None  # share: answers grow by more than this, 0.5 = half as long again


@dataclass(frozen=True)
class Findings:
    """In words with the numbers."""

    reasons: list[str]  # why this iteration must not go on; empty: no rule that could be decided is broken
    undecided: list[str]  # which rules could not be decided, and why


def standing(evaluation: dict[str, Any], learned: str) -> Standing:
    """Of the policy an `evaluation.json` is about."""
    return _standing(evaluation, learned, "policy", "mean", evaluation["scores"][evaluation["score"]]["win_rate"])


def baseline_standing(evaluation: dict[str, Any], learned: str) -> Standing:
    """Of the baseline it was compared with: what the first iteration is measured against."""
    return _standing(evaluation, learned, "baseline", "baseline_mean", 0.5)


def _standing(evaluation: dict[str, Any], learned: str, side: str, mean: str, win_rate: float | None) -> Standing:
    scores = evaluation["scores"]
    return Standing(_finite(win_rate), judged=_finite(scores[evaluation["score"]][mean]),
                    learned=_finite(scores.get(learned, {}).get(mean)), tokens=_finite(evaluation[side]["tokens"]))


def findings(now: Standing, before: Standing, rules: Rules, judge: str, learned: str) -> Findings:
    """What the rules say of an iteration. judge, learned: the names of the score that decides and the one optimised."""
    reasons, undecided = [], []
    if rules.win_rate_fall is not None:
        why = "the judge is the learned reward itself" if judge == learned else _missing(
            [(f"win rate by {judge!r}", now.win_rate, before.win_rate),
             (f"learned reward {learned!r}", now.learned, before.learned)])
        if why:
            undecided.append(f"cannot decide whether the win rate fell while the learned reward rose: {why}")
        elif _below(now.win_rate, before.win_rate, rules.win_rate_fall) and _below(before.learned, now.learned, 0.0):
            reasons.append(f"the win rate fell from {before.win_rate:.1%} to {now.win_rate:.1%} while the learned "
                           f"reward rose from {before.learned:.3f} to {now.learned:.3f}")
    if rules.length_growth is not None:
        why = _missing([("mean length", now.tokens, before.tokens)])
        if why:
            undecided.append(f"cannot decide whether answers grew: {why}")
        elif now.tokens is not None and before.tokens is not None and (
                now.tokens > before.tokens * (1 + rules.length_growth)):
            reasons.append(f"answers grew from {before.tokens:.1f} to {now.tokens:.1f} tokens, more than "
                           f"{rules.length_growth:.0%}")
    return Findings(reasons, undecided)


def _missing(wanted: list[tuple[str, float | None, float | None]]) -> str:
    """Which of (name, of this iteration, of the one before) are not there, "" where all are."""
    sides = [(name, side) for name, now, before in wanted
             for side, value in (("this iteration", now), ("what it is compared with", before)) if value is None]
    return ", ".join(f"no finite {name} of {side}" for name, side in sides)


def _below(value: float | None, other: float | None, margin: float) -> bool:
    return value is not None and other is not None and other - value > margin


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
