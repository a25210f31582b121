"""The best of N by iterative pairwise ranking: N - 1 comparisons, each in both orders (Chen et al. 2025, OnMC-PO).

    winner = c_1;  for i = 2 .. N: winner = the better of (winner, c_i)

A comparison asks the judge in both orders; where the two answers disagree, or tie, the winner so far stays. That finds
the best one only if the judge is transitive and has no favourite position, which `orders` puts to the test: the ranking
is repeated in several random orders, and a prompt whose winner depends on the order is dropped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipeline.config import setting
from pipeline.records import Group
from pipeline.selection.candidates import best_first, generator, paired, scores_of
from pipeline.selection.contract import LISTS, PAIRS, Rule, Selected

ORDER = "order_dependent"


@dataclass(frozen=True)
class Settings:
    """What judges, how often, and what the winner is set against."""

    score: str = "reward"
    """Name of the score in Completion.scores: of two samples the one with the higher score is judged better."""

    tie: float = setting(0.0, low=0.0)
    """Scores that differ by no more than this are a tie."""

    orders: int = setting(1, low=1)
    """Random orders in which the ranking is done; the winner must be the same in all of them."""

    rejected: str = setting("random", choices=("random", "worst", "rest"))
    """Against a random other sample, the one with the lowest score, or all others, best first (a list)."""


def champion(order: Sequence[int], judge: Callable[[int, int], float]) -> int:
    """The winner of len(order) - 1 comparisons along `order`.

    judge(first, second): P(first is better), in [0, 1]; 1/2 a tie. It is asked a second time, the other way round, only
    where the first answer is for the challenger. Raises ValueError for an empty order.
    """
    if not order:
        raise ValueError("there is nothing to rank")
    winner = order[0]
    for challenger in order[1:]:
        if judge(challenger, winner) > 0.5 > judge(winner, challenger):
            winner = challenger
    return winner


def select(group: Group, settings: Settings, seed: int = 0) -> Selected:
    """See Rule. Reasons: order_dependent."""
    values = scores_of(group, settings.score)
    rng = generator(seed, "pairwise_ranking", group.id)

    def judge(first: int, second: int) -> float:
        margin = values[first] - values[second]
        return 0.5 if abs(margin) <= settings.tie else float(margin > 0)

    found = {champion(rng.sample(range(len(values)), len(values)), judge) for _ in range(settings.orders)}
    if len(found) > 1:
        return [], ORDER
    (best,) = found
    others = [i for i in best_first(values) if i != best]
    if settings.rejected == "rest":
        return [replace(group, completions=tuple(group.completions[i] for i in (best, *others)))], ""
    lowest = min(sorted(others), key=lambda i: values[i])
    return [paired(group, best, lowest if settings.rejected == "worst" else rng.choice(others))], ""


RULE = Rule(Settings, select, gives=lambda s: LISTS if s.rejected == "rest" else PAIRS, seeded=True)
