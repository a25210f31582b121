"""How often a step is tried, and how long a try may take."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from flows.failures import STOPPED, StepFailed
from pipeline.config import setting

Made = TypeVar("Made")


@dataclass(frozen=True)
class Attempts:
    """Of one kind of stage, where it differs from the others."""

    timeout_minutes: float | None = setting(None, low=0)  # of a try; 0: no limit; null: hardware.timeout_minutes
    retries: int | None = setting(None, low=0)  # null: hardware.retries


def of(hardware: Mapping[str, Any], stage: str) -> tuple[float, int]:
    """(seconds that a try may take, 0: as long as it wants; how often it is tried again). Older records say less."""
    own = (hardware.get("stages") or {}).get(stage) or {}
    minutes, retries = own.get("timeout_minutes"), own.get("retries")
    return (60 * (hardware["timeout_minutes"] if minutes is None else minutes),
            hardware.get("retries", 0) if retries is None else retries)


def tried(attempt: Callable[[], Made], retries: int, engine_lost: Callable[[], bool], say: Callable[[str], None]
          ) -> Made:
    """What `attempt` makes. Where its process failed it is tried again, from its last checkpoint or part on: once where
    the engine was lost in mid-step, and `retries` times for whatever reason but that somebody stopped it.
    """
    lost = False
    while True:
        try:
            return attempt()
        except StepFailed as error:
            if engine_lost() and not lost:
                lost = True
                continue
            if retries <= 0 or error.code in STOPPED:
                raise
            retries -= 1
            say(str(error).partition("\n")[0])
