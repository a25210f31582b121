"""How long a step and the run still take: from earlier runs' times, corrected by the steps that have finished."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Forecast:
    """What is still to run, and what is known of how long it takes."""

    waiting: Mapping[str, str] = field(default_factory=dict)  # step -> its stage, those that run still
    measured: Mapping[str, float] = field(default_factory=dict)  # stage -> seconds of it in earlier runs
    finished: tuple[tuple[str, float], ...] = ()  # (stage, seconds) of what this run has computed
    # (step -> its seconds, those that go on) -> seconds of all; by itself: one after the other
    together: Callable[[Mapping[str, float], Sequence[str]], float] = lambda seconds, running: sum(seconds.values())

    def after(self, step: str, seconds: float | None) -> "Forecast":
        """Without the step, which took so long; None: it was there already."""
        took = () if seconds is None or step not in self.waiting else ((self.waiting[step], seconds),)
        return replace(self, waiting={name: stage for name, stage in self.waiting.items() if name != step},
                       finished=self.finished + took)

    def left(self, running: Mapping[str, tuple[float, float | None]]) -> tuple[float, bool]:
        """Seconds to the end of the run, and whether every step to come is among them (False: at least so long).

        running: step -> seconds that have passed, and those that it says it takes still; None: what such a step takes,
        less what has passed.
        """
        found, whole = dict[str, float](), True
        for step, stage in self.waiting.items():
            seconds = self._of(stage)
            if step in running:
                elapsed, own = running[step]
                seconds = own if own is not None else None if seconds is None else max(0.0, seconds - elapsed)
            found[step], whole = seconds or 0.0, whole and seconds is not None
        return self.together(found, list(running)), whole

    def _of(self, stage: str) -> float | None:
        """As long as in this run; else as in earlier ones, times how much slower this one has been than they were."""
        if own := [seconds for other, seconds in self.finished if other == stage]:
            return statistics.median(own)
        known = [(seconds, self.measured[other]) for other, seconds in self.finished if self.measured.get(other)]
        slower = sum(took for took, _ in known) / sum(before for _, before in known) if known else 1.0
        return self.measured[stage] * slower if stage in self.measured else None


def pace(state: Mapping[str, Any]) -> float | None:
    """Of progress.json: what it counts, per second of this process's work; None before there is any."""
    began = state.get("began")
    if not began or state["done"] <= began["done"] or state["time"] <= began["time"]:
        return None
    return float((state["done"] - began["done"]) / (state["time"] - began["time"]))


def left_of_step(state: Mapping[str, Any] | None, now: float | None = None) -> float | None:
    """Seconds by its pace, None where it has none. now: Unix time, None: the current one."""
    speed = pace(state) if state and state["total"] else None
    if state is None or speed is None:
        return None
    since = (time.time() if now is None else now) - state["time"]
    return float(max(0.0, (state["total"] - state["done"]) / speed - since))
