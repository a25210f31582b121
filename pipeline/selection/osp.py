"""Ranked pairing with soft labels (online self-preferring models, OSP): every sample against one baseline.

p_i is the probability that sample i beats the baseline, so N - 1 judgements rank N samples; the label of a pair follows
from Bradley-Terry transitivity:

    p_ij = sigmoid(logit p_i - logit p_j)

stored as the score "win_rate" of the chosen one, 1 - p_ij of the rejected one: the soft label of objective spce.
"""

from dataclasses import dataclass
from itertools import combinations

from pipeline.config import setting
from pipeline.records import Group
from pipeline.selection.candidates import TIED, WIN_RATE, best_first, bradley_terry, logit, scores_of, sigmoid
from pipeline.selection.contract import Rule, Selected


@dataclass(frozen=True)
class Settings:
    """Which score, what it is, and which pairs are kept."""

    score: str = "reward"
    """Name of the score in Completion.scores."""

    given: str = setting("rewards", choices=("rewards", "probabilities"))
    """What the score is: a reward, or already the probability to beat the baseline."""

    baseline: str = setting("first", choices=("first", "median"))
    """With rewards, which sample is the baseline: the first, or the (lower) median by score."""

    temperature: float = setting(1.0, above=0.0)
    """With rewards: p_i = sigmoid((r_i - r_baseline) / temperature)."""

    clip: float = setting(0.01, above=0.0, below=0.5)
    """p_i is brought into [clip, 1 - clip], which bounds the labels."""

    pairs: str = setting("adjacent_and_ends", choices=("adjacent_and_ends", "all", "ends"))
    """Neighbours in the ranking and best against worst, all pairs, or best against worst."""


def select(group: Group, settings: Settings, seed: int = 0) -> Selected:
    """See Rule. Samples of equal p make no pair. Reasons: tied_scores."""
    values = scores_of(group, settings.score)
    logits = [logit(p, settings.clip) for p in against_baseline(values, settings)]
    order = best_first(logits)
    last = len(order) - 1
    ranks = list(combinations(range(len(order)), 2))
    if settings.pairs != "all":
        ranks = [(a, b) for a, b in ranks if (a, b) == (0, last) or (settings.pairs != "ends" and b == a + 1)]
    pairs = [(order[a], order[b]) for a, b in ranks if logits[order[a]] > logits[order[b]]]
    return bradley_terry(group, pairs, logits), "" if pairs else TIED


def against_baseline(values: list[float], settings: Settings) -> list[float]:
    """P(sample i beats the baseline), in [0, 1]; 1/2 for the baseline itself."""
    if settings.given == "probabilities":
        return values
    base = values[0] if settings.baseline == "first" else sorted(values)[(len(values) - 1) // 2]
    return [sigmoid((value - base) / settings.temperature) for value in values]


RULE = Rule(Settings, select, stores=(WIN_RATE,))
