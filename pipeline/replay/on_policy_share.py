"""All groups of the newest iteration, and so many older ones that the newest are a given share of the whole."""

from dataclasses import dataclass

import numpy as np

from pipeline.config import setting
from pipeline.replay.contract import Past, Replay


@dataclass(frozen=True)
class Settings:
    """How many older ones."""

    share: float = setting(0.5, above=0.0, high=1.0)  # of the newest among all; more of them where too few are older


def factors(past: Past, settings: Settings) -> np.ndarray:
    """The older ones with the smallest points: a smaller share only adds to them."""
    newest = past.iteration == past.iteration.max(initial=0)
    older = np.flatnonzero(~newest)
    room = round(int(newest.sum()) * (1.0 - settings.share) / settings.share)
    kept = newest.astype(float)
    kept[older[np.argsort(past.point[older], kind="stable")[:room]]] = 1.0
    return kept


REPLAY = Replay(Settings, factors)
