"""Several scores made into one: mean, minimum, or mean less what the scorers disagree (Coste et al. 2024).

    mean          1/K sum_k s_k
    minimum       min_k s_k                       (MaxMin: the best answer is the one whose worst score is highest)
    penalised     mean - penalty * var_k(s_k)     (uncertainty-weighted; variance divided by K)

Different scorers have different scales. With `zscore` each is first taken as (s_k - mean) / sd over all finite scores
of that scorer in the table: the table is looked at as a whole, so that its parts change nothing. A completion that one
of the scorers has no finite score for has none.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pvariance

from pipeline.config import setting


@dataclass(frozen=True)
class Ensemble:
    """Which scores, and how they become one."""

    of: tuple[str, ...] = ()
    """Names of scores: of reward.name and reward.also. Empty: no ensemble."""

    name: str = "ensemble"
    """The new score's name, for selection.score."""

    combine: str = setting("mean", choices=("mean", "minimum", "penalised"))
    """How several become one."""

    zscore: bool = True
    """Whether each is brought to mean 0 and standard deviation 1 first."""

    penalty: float = setting(1.0, low=0.0)
    """Of penalised: times the variance of a completion's scores."""

    def check(self) -> list[tuple[str, str]]:
        if self.name in self.of:
            return [("name", f"{self.name!r} is one of its own scores, give it another name")]
        return [("of", "one score is no ensemble, expected two or more")] if len(self.of) == 1 else []


Scale = tuple[float, float]


def scales(scores: Iterable[Mapping[str, float]], settings: Ensemble) -> dict[str, Scale]:
    """Mean and standard deviation of each scorer's finite scores, by Welford's running sums; (0, 1) without zscore."""
    found = dict.fromkeys(settings.of, (0, 0.0, 0.0))
    for one in scores if settings.zscore else ():
        for name, (number, mean, squares) in found.items():
            if math.isfinite(value := one[name]):
                nearer = mean + (value - mean) / (number + 1)
                found[name] = number + 1, nearer, squares + (value - mean) * (value - nearer)
    return {name: (mean, math.sqrt(squares / number) or 1.0) if number else (0.0, 1.0)
            for name, (number, mean, squares) in found.items()}


def combined(scores: Mapping[str, float], settings: Ensemble, scale: Mapping[str, Scale]) -> float:
    """The score of one completion; NaN where one of its scores is not finite."""
    values: Sequence[float] = [(scores[name] - scale[name][0]) / scale[name][1] for name in settings.of]
    if not all(map(math.isfinite, values)):
        return math.nan
    if settings.combine == "minimum":
        return min(values)
    return fmean(values) - (settings.penalty * pvariance(values) if settings.combine == "penalised" else 0.0)
