"""Self-annotated pairs (Kim et al. 2024, SPA / Selfie): the model's own implicit reward labels its samples.

    r(y) = beta (log pi_{i-1}(y | x) - log pi_init(y | x))         the score `score`, see pipeline.rewards.implicit

The winner is the sample with the larger r. De-coupled noise detection: with the extrapolated model's implicit reward
(the score `decoupled`) a pair whose margin is at or below the table's K-th percentile is taken for noise and gets the
soft label 1 - alpha; the others keep 1. Stored as the score "win_rate", for objective spce with labels=probability.

The paper takes the percentile over the last 50 micro-batches with the weights of the moment, after a warm-up; this rule
takes it over the whole table with the weights that labelled it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pipeline.config import setting
from pipeline.records import Group
from pipeline.selection.candidates import WIN_RATE, best_against_random, ends, labelled, paired, scores_of
from pipeline.selection.contract import Rule, Selected


@dataclass(frozen=True)
class Settings:
    """Which scores, which pair, and how noise is told."""

    score: str = "reward"
    """Name of the implicit reward in Completion.scores."""

    pairing: str = setting("best_worst", choices=("best_worst", "best_random"))
    """With more than two samples: the best against the worst, or against a random other one."""

    decoupled: str | None = None
    """Name of the de-coupled implicit reward; null: no noise detection, every label is 1."""

    percentile: float = setting(10.0, above=0.0, below=100.0)
    """K: this share of the pairs, in percent, is taken for noise."""

    alpha: float = setting(0.1, low=0.0, high=0.5)
    """How much of a noisy pair's label goes to the other side."""


def survey(groups: Iterable[Group], settings: Settings, seed: int = 0) -> float:
    """The margin of `decoupled` at or below which a pair counts as noise; -inf without noise detection."""
    if settings.decoupled is None:
        return float("-inf")
    margins = [_margin(_pair(group, settings, seed), settings.decoupled) for group in groups]
    return float(np.percentile(margins, settings.percentile)) if margins else float("-inf")


def select(group: Group, settings: Settings, seed: int = 0, found: float = float("-inf")) -> Selected:
    """See Rule. found: what `survey` returned."""
    pair = _pair(group, settings, seed)
    noisy = settings.decoupled is not None and _margin(pair, settings.decoupled) <= found
    return [labelled(pair, 1.0 - settings.alpha if noisy else 1.0)], ""


def _pair(group: Group, settings: Settings, seed: int) -> Group:
    values = scores_of(group, settings.score)
    random = settings.pairing == "best_random"
    return paired(group, *(best_against_random(values, seed, "spa", group) if random else ends(values)))


def _margin(pair: Group, name: str) -> float:
    chosen, rejected = scores_of(pair, name)
    return chosen - rejected


RULE = Rule(Settings, select, seeded=lambda s: s.pairing == "best_random", stores=(WIN_RATE,), survey=survey,
            reads=lambda s: (s.score,) if s.decoupled is None else (s.score, s.decoupled))
