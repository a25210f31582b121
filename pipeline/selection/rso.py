"""Statistical rejection sampling (Liu et al. 2023, Algorithm 1), then pairs among what was accepted.

Samples of the policy are sub-sampled so that they look like samples of the optimal policy exp(r / beta): going through
the remaining ones in random order, each is accepted with probability exp((r - m) / beta), m the largest remaining
reward, until n are accepted. beta -> infinity: any n; beta -> 0: the n best. The largest is always accepted, so every
pass makes progress; with fewer than n samples all of them are.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config import setting
from pipeline.records import Group
from pipeline.selection.candidates import WIN_RATE, bradley_terry, generator, logit, scores_of
from pipeline.selection.contract import Rule, Selected

_CLIP = 1e-4


@dataclass(frozen=True)
class Settings:
    """How many are accepted, and how they are paired."""

    score: str = "reward"
    """Name of the score in Completion.scores."""

    given: str = setting("rewards", choices=("rewards", "probabilities"))
    """What the score is: a reward, or the probability to beat a fixed answer (then r is its logit, as in the paper)."""

    n: int = setting(8, low=2)
    """Samples accepted per prompt. Paper: 8 of 64."""

    beta: float = setting(0.5, above=0.0)
    """Temperature of the acceptance, in units of the reward. Paper: 0.5; not the loss's beta."""

    pairing: str = setting("first_round", choices=("first_round", "tournament"))
    """first_round: n / 2 disjoint random pairs; tournament: winners meet until one is left, n - 1 pairs."""


def accept(rewards: Sequence[float], n: int, beta: float, rng: random.Random) -> list[int]:
    """Indices of the accepted ones, at most n, in the order of acceptance.

    rewards: finite numbers; n >= 1; beta > 0, in units of the reward.
    """
    left = rng.sample(range(len(rewards)), len(rewards))
    accepted: list[int] = []
    while left and len(accepted) < n:
        largest = max(rewards[i] for i in left)
        taken: set[int] = set()
        for i in left:
            if len(accepted) < n and rng.random() < math.exp((rewards[i] - largest) / beta):
                accepted.append(i)
                taken.add(i)
        left = [i for i in left if i not in taken]
    return accepted


def first_round(players: Sequence[int], rewards: Sequence[float]) -> list[tuple[int, int]]:
    """Neighbours paired, (winner, loser), the earlier of equals wins; an odd last one is left out."""
    pairs = zip(players[::2], players[1::2], strict=False)
    return [(a, b) if rewards[a] >= rewards[b] else (b, a) for a, b in pairs]


def tournament(players: Sequence[int], rewards: Sequence[float]) -> list[tuple[int, int]]:
    """Winners meet winners until one is left: len(players) - 1 pairs; an odd last one goes to the next round."""
    found: list[tuple[int, int]] = []
    while len(players) > 1:
        met = first_round(players, rewards)
        found += met
        players = [winner for winner, _ in met] + list(players[len(met) * 2 :])
    return found


def select(group: Group, settings: Settings, seed: int = 0) -> Selected:
    """See Rule. Every pair carries P(chosen better) = sigmoid(r_w - r_l)."""
    rewards = scores_of(group, settings.score)
    if settings.given == "probabilities":
        rewards = [logit(p, _CLIP) for p in rewards]
    rng = generator(seed, "rso", group.id)
    players = accept(rewards, settings.n, settings.beta, rng)
    rng.shuffle(players)
    meet = first_round if settings.pairing == "first_round" else tournament
    return bradley_terry(group, meet(players, rewards), rewards), ""


RULE = Rule(Settings, select, seeded=True, stores=(WIN_RATE,))
