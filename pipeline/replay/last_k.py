"""The groups of the last k iterations; older ones are left out."""

from dataclasses import dataclass

import numpy as np

from pipeline.config import setting
from pipeline.replay.contract import Past, Replay, rounds


@dataclass(frozen=True)
class Settings:
    """How far back."""

    k: int = setting(2, low=1)  # iterations that made groups, this one counted
    data_set: bool = False  # the data set's own preferences stay, however old; else they are the oldest iteration


def factors(past: Past, settings: Settings) -> np.ndarray:
    found, places = rounds(past)
    recent = places >= len(found) - settings.k
    return (recent | (settings.data_set & (past.iteration == 0))).astype(float)


REPLAY = Replay(Settings, factors)
