"""Score by comparing completions of a prompt with each other: a pairwise judge named by its dotted path.

    def function(messages: list[dict[str, str]], first: str, second: str) -> float

gets the conversation and two completions and returns the probability that the first is better, in [0, 1]. Every pair is
asked in both orders, so that a favourite position cancels:

    p(i, j) = 1/2 (f(i, j) + 1 - f(j, i))

What becomes of the comparisons is the scheme: `all`, the mean win rate against all N samples, the sample itself (1/2)
included, N (N - 1) calls; `baseline`, p against the first sample (1/2 for itself), 2 (N - 1) calls; `champion`, 1 for
the winner of iterative ranking and 0 for the others, at most 2 (N - 1) calls: the winner so far stays unless both
orders are for the challenger.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import setting
from pipeline.errors import UserError
from pipeline.lm.settings import THIS_MACHINE, ModelRuntime
from pipeline.records import Group
from pipeline.rewards import rule
from pipeline.rewards.contract import ScoreGroups, Scorer

Judge = Callable[[int, int], float]


@dataclass(frozen=True)
class Settings:
    """Which judge, and which comparisons."""

    function: str
    """Dotted path, such as pipeline.rewards.pairwise.fresher."""

    scheme: str = setting("all", choices=("all", "baseline", "champion"))
    """all: win rate against all samples; baseline: against the first; champion: 1 for the best, 0 for the others."""

    def check(self) -> list[tuple[str, str]]:
        return rule.function_problems(self.function)


def scorer(settings: Settings, *, model: Path | None = None, runtime: ModelRuntime = THIS_MACHINE) -> ScoreGroups:
    """See Scorer. Only the settings matter. Raises UserError for a verdict that is no probability."""
    function: Any = rule.resolve(settings.function)

    def score(group: Group) -> list[float]:
        def judge(first: int, second: int) -> float:
            texts = (group.completions[i].text for i in (first, second))
            verdict = function(rule.turns(group), *texts)
            if not isinstance(verdict, (int, float)) or not 0.0 <= verdict <= 1.0:
                raise UserError(f"reward judge {settings.function}: returned {verdict!r} for {group.id!r}, expected "
                                "the probability that the first is better, 0 <= x <= 1")
            return float(verdict)

        return _SCHEMES[settings.scheme](len(group.completions), judge)

    return lambda groups: [score(group) for group in groups]


def swapped(judge: Judge, one: int, other: int) -> float:
    """P(one is better), asked in both orders."""
    return 0.5 * (judge(one, other) + 1.0 - judge(other, one))


def all_win_rates(number: int, judge: Judge) -> list[float]:
    """P_i = mean over all samples j of p(i, j), p(i, i) = 1/2; mean 1/2."""
    table = [[0.5] * number for _ in range(number)]
    for i in range(number):
        for j in range(i):
            table[i][j] = swapped(judge, i, j)
            table[j][i] = 1.0 - table[i][j]
    return [sum(row) / number for row in table]


def against_first(number: int, judge: Judge) -> list[float]:
    """p(i, 0), 1/2 for sample 0 itself."""
    return [0.5 if i == 0 else swapped(judge, i, 0) for i in range(number)]


def champion(number: int, judge: Judge) -> list[float]:
    """1 for the winner of number - 1 comparisons in sample order, 0 for the others."""
    winner = 0
    for i in range(1, number):
        if judge(i, winner) > 0.5 > judge(winner, i):
            winner = i
    return [float(i == winner) for i in range(number)]


_SCHEMES = {"all": all_win_rates, "baseline": against_first, "champion": champion}


def fresher(messages: Sequence[dict[str, str]], first: str, second: str) -> float:
    """1, 1/2 or 0 as the first has more, equally many or fewer fresh word 3-grams: a judge to start from."""
    margin = rule.fresh_trigrams(messages, first) - rule.fresh_trigrams(messages, second)
    return 0.5 if margin == 0.0 else float(margin > 0.0)


SCORER = Scorer(Settings, scorer, files=rule.files, relative=True)
