"""Pairs the preference estimator is sure of (Wang et al. 2024, UPO): uncertainty by Monte-Carlo dropout.

The reward model scores every sample T times with dropout on (pipeline.rewards.dropout). Of a pair, pass t says
p_t = sigmoid(r_w,t - r_l,t), and what the passes disagree about is its information gain (BALD, nats):

    IG = H(mean_t p_t) - mean_t H(p_t),   0 <= IG <= ln 2,   low = certain

Candidates are the pairs of a winner in the upper half of the prompt's ranking and a loser in the lower half (with an
odd number the middle one is in neither). A share of all the table's pairs is drawn without replacement with

    P_j = (1 - IG_j)^mu / sum_k (1 - IG_k)^mu

Stored as scores of the pair: "information_gain" and "sampling_share" (P_j), the two that objective upo takes, and
"win_rate", the soft label 1 - IG_j / (2 ln 2), 1 when certain, 1/2 when the pair is a coin toss.
"""

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from pipeline.config import setting
from pipeline.errors import UserError
from pipeline.records import Completion, Group
from pipeline.selection.candidates import (
    TOO_FEW,
    WIN_RATE,
    best_first,
    generator,
    labelled,
    numbered,
    paired,
    scored,
    scores_of,
    sigmoid,
)
from pipeline.selection.contract import Rule, Selected

UNCERTAIN = "uncertain"
GAIN = "information_gain"
SHARE = "sampling_share"


@dataclass(frozen=True)
class Settings:
    """Which score ranks, and how much certainty counts."""

    score: str = "reward"
    """Name of the mean score; the passes are the scores "<score>_pass0", "<score>_pass1" ..."""

    mu: float = setting(1.0, low=0.0)
    """Exponent of the sampling probability; 0: certainty does not matter. Printed as a factor, which would cancel."""

    share: float = setting(0.5, above=0.0, high=1.0)
    """Share of the table's candidate pairs that is drawn. Not in the paper."""


@dataclass(frozen=True)
class Survey:
    """What is known of the whole table: the key a pair must reach, and the sum of the unnormalised probabilities."""

    least_key: float = float("-inf")
    total: float = 1.0


def asks(settings: Settings) -> tuple[str, ...]:
    """Two passes are the fewest that can disagree."""
    return f"{settings.score}_pass0", f"{settings.score}_pass1"


def information_gain(probabilities: Sequence[float]) -> float:
    """H(mean p) - mean H(p) of Bernoulli probabilities, nats, in [0, ln 2]."""
    return max(0.0, _entropy(fmean(probabilities)) - fmean(map(_entropy, probabilities)))


def survey(groups: Iterable[Group], settings: Settings, seed: int = 0) -> Survey:
    """Returns the least key of the drawn pairs (`share` of all) and the sum of unnormalised P over all pairs.

    A pair's key is log P plus Gumbel noise: the pairs of the largest keys are a draw without replacement, with
    probabilities in proportion to P.
    """
    keys: list[float] = []
    total = 0.0
    for group in groups:
        for pair in _pairs(group, settings):
            gain = pair.completions[0].scores[GAIN]
            keys.append(_key(pair, settings, seed))
            total += (1.0 - gain) ** settings.mu
    if not keys:
        return Survey()
    return Survey(heapq.nlargest(max(1, round(settings.share * len(keys))), keys)[-1], total)


def select(group: Group, settings: Settings, seed: int = 0, found: Survey = Survey()) -> Selected:
    """See Rule. found: what `survey` returned; without it every candidate pair is kept.

    Reasons: too_few_samples, uncertain (no pair of the prompt was drawn). Raises UserError without pass scores.
    """
    pairs = _pairs(group, settings)
    if not pairs:
        return [], TOO_FEW
    drawn = [pair for pair in pairs if _key(pair, settings, seed) >= found.least_key]
    return [_with_labels(pair, settings, found) for pair in drawn], "" if drawn else UNCERTAIN


def _pairs(group: Group, settings: Settings) -> list[Group]:
    """Every candidate pair, under its own id."""
    values = scores_of(group, settings.score)
    if len(values) < 4:
        return []
    passes = [_passes(completion, settings.score, group.id) for completion in group.completions]
    order, half = best_first(values), len(values) // 2
    made = []
    for best in order[:half]:
        for other in order[-half:]:
            agreed = zip(passes[best], passes[other], strict=True)
            gain = information_gain([sigmoid(ours - theirs) for ours, theirs in agreed])
            made.append(scored(paired(group, best, other), GAIN, (gain, gain)))
    return numbered(made)


def _passes(completion: Completion, score: str, name: str) -> list[float]:
    found = list[float]()
    while f"{score}_pass{len(found)}" in completion.scores:
        found.append(completion.scores[f"{score}_pass{len(found)}"])
    if len(found) < 2:
        raise UserError(f"selection.score: sample {completion.sample} of {name!r} has no scores {score}_pass0, "
                        f"{score}_pass1 ..., which tell how sure the reward model is; score with reward=dropout")
    return found


def _key(pair: Group, settings: Settings, seed: int) -> float:
    uniform = 1.0 - generator(seed, "upo", pair.id).random()  # in (0, 1]
    noise = -math.log(-math.log(min(uniform, 1.0 - 2**-53)))
    return settings.mu * math.log(1.0 - pair.completions[0].scores[GAIN]) + noise


def _with_labels(pair: Group, settings: Settings, found: Survey) -> Group:
    gain = pair.completions[0].scores[GAIN]
    share = (1.0 - gain) ** settings.mu / found.total
    return labelled(scored(pair, SHARE, (share, share)), 1.0 - gain / (2.0 * math.log(2.0)))


def _entropy(p: float) -> float:
    return -sum(q * math.log(q) for q in (p, 1.0 - p) if q > 0.0)


RULE = Rule(Settings, select, samples=4, seeded=True, asks=asks, stores=(WIN_RATE, GAIN, SHARE), survey=survey)
