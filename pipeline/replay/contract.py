"""What a rule of replay declares: groups of several iterations -> how much each counts in the next training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Past:
    """The groups there are so far: G of them, each prompt's newest."""

    iteration: np.ndarray
    """(G,) int64, who made it: 0 the data set, k the policy that iteration k sampled from."""

    point: np.ndarray
    """(G,) float64 in [0, 1), from a hash of the group's id: what a rule draws with."""


@dataclass(frozen=True)
class Replay:
    """What a module in pipeline/replay declares as REPLAY."""

    Settings: type

    factors: Callable[[Past, Any], np.ndarray]
    """(groups, settings) -> (G,) float64, a factor >= 0 on each group's weight; 0 leaves it out."""


def rounds(past: Past) -> tuple[np.ndarray, np.ndarray]:
    """The iterations that made groups, oldest first, and (G,) the place of each group's among them."""
    found, places = np.unique(past.iteration, return_inverse=True)
    return found, places.reshape(-1)
