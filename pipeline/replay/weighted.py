"""Everything so far, older iterations less: a group's weight falls by one factor with every iteration since."""

from dataclasses import dataclass

import numpy as np

from pipeline.config import setting
from pipeline.replay.contract import Past, Replay, rounds


@dataclass(frozen=True)
class Settings:
    """How fast."""

    decay: float = setting(0.5, above=0.0, high=1.0)  # of the weight, per iteration; 1: all count alike


def factors(past: Past, settings: Settings) -> np.ndarray:
    found, places = rounds(past)
    return np.asarray(settings.decay ** (len(found) - 1.0 - places))


REPLAY = Replay(Settings, factors)
