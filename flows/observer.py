"""What may be told of a run: to the screen, Prefect's page, trackers. They are told; they decide nothing."""

from typing import Any

from pipeline import store
from pipeline.plan import Step


class Observer:
    """Told by the driver's own thread, so whoever has more than a moment's work to do does it elsewhere.

    A class that inherits this defines only what it wants to hear. One that raises is left out from then on.
    """

    def started(self, step: Step) -> None:
        """The step is looked up, and computed unless it is cached."""

    def progress(self, step: str, state: dict[str, Any] | None) -> None:
        """Several times a second: the content of progress.json, {step, done, total, unit}; None before there is one."""

    def again(self, step: str, why: str) -> None:
        """The step failed and is tried again, from its last checkpoint or part on."""

    def finished(self, step: str, artifact: store.Artifact, cached: bool, seconds: float) -> None:
        """The step's artifact is in the store; `seconds` went by since it started."""

    def gate(self, lines: list[str]) -> None:
        """What a gate decided, in words."""

    def ended(self, outcome: str) -> None:
        """The run's outcome, as run.json has it: told last."""
