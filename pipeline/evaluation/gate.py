"""Whether an iteration may go on: from two evaluations against the same baseline to reasons for stopping it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Standing:
    """What a gate looks at of one policy."""

    win_rate: float  # against the baseline all iterations share, in [0, 1]; the baseline's own: 0.5
    judged: float | None  # mean of the score that judges; None where preferences from a file judged
    learned: float | None  # mean of the score the loop optimises; None where the answers carry none
    tokens: float  # mean length of an answer


@dataclass(frozen=True)
class Rules:
    """What stops an iteration."""

    win_rate_fall: float | None  # share: the judge sees a fall by more than this while the learned reward rises
    length_growth: float | None  # share: answers grow by more than this, 0.5 = half as long again


def standing(evaluation: dict[str, Any], learned: str) -> Standing:
    """Of the policy an `evaluation.json` is about."""
    scores, deciding = evaluation["scores"], evaluation["score"]
    optimised = scores.get(learned)
    return Standing(
        win_rate=scores[deciding]["win_rate"], judged=scores[deciding]["mean"],
        learned=None if optimised is None else optimised["mean"], tokens=evaluation["policy"]["tokens"])


def baseline_standing(evaluation: dict[str, Any], learned: str) -> Standing:
    """Of the baseline it was compared with: what the first iteration is measured against."""
    scores, deciding = evaluation["scores"], evaluation["score"]
    optimised = scores.get(learned)
    return Standing(
        win_rate=0.5, judged=scores[deciding]["baseline_mean"],
        learned=None if optimised is None else optimised["baseline_mean"], tokens=evaluation["baseline"]["tokens"])


def reasons(now: Standing, before: Standing, rules: Rules) -> list[str]:
    """Why this iteration must not go on, in words with the numbers; empty: it may."""
    found = []
    rose = now.learned is not None and before.learned is not None and now.learned > before.learned
    if rules.win_rate_fall is not None and rose and before.win_rate - now.win_rate > rules.win_rate_fall:
        found.append(f"the win rate fell from {before.win_rate:.1%} to {now.win_rate:.1%} while the learned reward "
                     f"rose from {before.learned:.3f} to {now.learned:.3f}")
    if rules.length_growth is not None and now.tokens > before.tokens * (1 + rules.length_growth):
        found.append(f"answers grew from {before.tokens:.1f} to {now.tokens:.1f} tokens, more than "
                     f"{rules.length_growth:.0%}")
    return found
