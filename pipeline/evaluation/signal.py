"""How much there was to learn from an iteration's samples, and whether the reward that ranked them was right."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.records import LENGTH, Group


@dataclass(frozen=True)
class Accuracy:
    """How often one score orders two answers to a prompt as another does."""

    pairs: int  # of answers to one prompt that the judging score tells apart
    accuracy: float | None  # in [0, 1], ties of the checked score half; None: no such pair


def account(sampled: Iterable[Group], kept: set[str], score: str) -> dict[str, int]:
    """Where the prompts and samples of an iteration went, as numbers by name.

    `kept`: ids of the prompts a group was made of. Every other prompt is counted under the first reason that holds:
    too few answers, all the same text, all the same score, other (the selection's own rules).
    """
    counts: Counter[str] = Counter(prompts=0, samples=0, kept=0, lost_too_few_answers=0, lost_same_text=0,
                                   lost_same_score=0, lost_other=0, duplicate_samples=0, truncated_samples=0,
                                   unscored_samples=0)
    for group in sampled:
        answers = group.completions
        values = [c.scores[score] for c in answers if math.isfinite(c.scores[score])]
        texts = {c.token_ids for c in answers}
        counts["prompts"] += 1
        counts["samples"] += len(answers)
        counts["duplicate_samples"] += len(answers) - len(texts)
        counts["truncated_samples"] += sum(c.finish_reason == LENGTH for c in answers)
        counts["unscored_samples"] += len(answers) - len(values)
        reasons = {"kept": group.id in kept, "lost_too_few_answers": len(values) < 2, "lost_same_text": len(texts) < 2,
                   "lost_same_score": len(set(values)) < 2, "lost_other": True}
        counts[next(reason for reason, holds in reasons.items() if holds)] += 1
    return dict(counts)


def ordering_accuracy(groups: Iterable[Group], checked: str, judge: str) -> Accuracy:
    """Of all pairs of answers to one prompt that the score `judge` tells apart: how often `checked` agrees."""
    pairs, right = 0, 0.0
    for group in groups:
        found = [(c.scores[checked], c.scores[judge]) for c in group.completions]
        known = [(a, b) for a, b in found if math.isfinite(a) and math.isfinite(b)]
        for i, (a, b) in enumerate(known):
            for other_a, other_b in known[:i]:
                if b != other_b:
                    pairs += 1
                    right += 0.5 if a == other_a else (a > other_a) == (b > other_b)
    return Accuracy(pairs, right / pairs if pairs else None)
