"""One pair per prompt with the win rates of SPPO (Wu et al. 2024): how often each sample beats the others.

    P_ij = sigmoid(s_i - s_j),   P_i = mean over all K samples j, i itself (1/2) included

The pair is the largest against the smallest score. Stored as scores: "win_rate", P_w and P_l, the targets of objective
sppo; "win_rate_pair", P_wl on the chosen one and 1 - P_wl on the rejected one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config import setting
from pipeline.records import Group
from pipeline.selection.candidates import WIN_RATE, ends, paired, scored, scores_of, sigmoid
from pipeline.selection.contract import Rule, Selected

OF_PAIR = "win_rate_pair"


@dataclass(frozen=True)
class Settings:
    """Which score the win rates come from."""

    score: str = "reward"
    """Name of the score in Completion.scores. Paper: PairRM's, K = 5 samples."""

    temperature: float = setting(1.0, above=0.0)
    """P_ij = sigmoid((s_i - s_j) / temperature). Paper: 1."""


def win_rates(values: Sequence[float], temperature: float = 1.0) -> list[float]:
    """P_i for K scores, each in (0, 1), with mean 1/2."""
    return [sum(sigmoid((mine - other) / temperature) for other in values) / len(values) for mine in values]


def select(group: Group, settings: Settings, seed: int = 0) -> Selected:
    """See Rule."""
    values = scores_of(group, settings.score)
    best, worst = ends(values)
    between = sigmoid((values[best] - values[worst]) / settings.temperature)
    rated = scored(group, WIN_RATE, win_rates(values, settings.temperature))
    return [scored(paired(rated, best, worst), OF_PAIR, (between, 1.0 - between))], ""


RULE = Rule(Settings, select, stores=(WIN_RATE, OF_PAIR))
