"""What the selection rules share: scores by name, order, pairs with ids of their own, randomness by group."""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pipeline.errors import UserError, nearest
from pipeline.records import Group
from pipeline.stage import derive_seed

TOO_FEW = "too_few_samples"
LOW = "low_margin"
TIED = "tied_scores"
WIN_RATE = "win_rate"  # score name of a probability: how likely this completion is the better one


@dataclass(frozen=True)
class Scored:
    """Which score ranks the samples: the settings of the rules that ask nothing else."""

    score: str = "reward"
    """Name of the score in Completion.scores."""


def scores_of(group: Group, name: str) -> list[float]:
    """The score `name` of every completion. Raises UserError naming the first that has none."""
    for completion in group.completions:
        if name not in completion.scores:
            where = f"sample {completion.sample} of {group.id!r}"
            raise UserError(f"selection.score: {where} has no score {name!r}{nearest(name, completion.scores)}")
    return [c.scores[name] for c in group.completions]


def best_first(values: Sequence[float]) -> list[int]:
    """Indices by falling value, equal ones in their order."""
    return sorted(range(len(values)), key=lambda i: -values[i])


def ends(values: Sequence[float]) -> tuple[int, int]:
    """Index of the largest and of the smallest value, the earlier of equals; never the same one for two or more."""
    best = max(range(len(values)), key=lambda i: values[i])
    worst = min((i for i in range(len(values)) if i != best), key=lambda i: values[i])
    return best, worst


def best_against_random(values: Sequence[float], seed: int, rule: str, group: Group) -> tuple[int, int]:
    """Index of the largest value, and of one of the others, each as likely."""
    best, _ = ends(values)
    return best, generator(seed, rule, group.id).choice([i for i in range(len(values)) if i != best])


def paired(group: Group, chosen: int, rejected: int) -> Group:
    """The group with two of its completions, the preferred one first."""
    return replace(group, completions=(group.completions[chosen], group.completions[rejected]))


def numbered(groups: Sequence[Group]) -> list[Group]:
    """Several groups of one prompt with ids of their own: "p7" -> "p7#0", "p7#1" ...; a single one keeps its id."""
    if len(groups) < 2:
        return list(groups)
    return [replace(group, id=f"{group.id}#{k}") for k, group in enumerate(groups)]


def scored(group: Group, name: str, values: Iterable[float]) -> Group:
    """The group with a score `name` on each completion, in place of one of that name."""
    given = zip(group.completions, values, strict=True)
    return replace(group, completions=tuple(replace(c, scores={**c.scores, name: value}) for c, value in given))


def labelled(pair: Group, probability: float) -> Group:
    """The pair with its soft label: P(the chosen one is better) on it, the rest to 1 on the other."""
    return scored(pair, WIN_RATE, (probability, 1.0 - probability))


def bradley_terry(group: Group, pairs: Iterable[tuple[int, int]], values: Sequence[float]) -> list[Group]:
    """The pairs (chosen, rejected) of a group, each with P(chosen better) = sigmoid(difference) as label."""
    return numbered([labelled(paired(group, i, j), sigmoid(values[i] - values[j])) for i, j in pairs])


def generator(seed: int, rule: str, group_id: str, *more: object) -> random.Random:
    """The random numbers of one prompt: the same wherever it stands in the table."""
    return random.Random(derive_seed(seed, "selection", rule, group_id, *more))


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x), without overflow."""
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def logit(p: float, clip: float) -> float:
    """log(p / (1 - p)) of p brought into [clip, 1 - clip]. Raises UserError for p outside [0, 1]: no probability."""
    if not 0.0 <= p <= 1.0:
        raise UserError(f"selection: found the score {p:g} where a probability is expected, 0 <= x <= 1; "
                        "set selection.given=rewards")
    p = min(max(p, clip), 1.0 - clip)
    return math.log(p / (1.0 - p))
