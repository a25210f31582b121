"""The steps of a run whose processes go on, each watched by a thread of its own until its artifact is in the store."""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flows.schedule import Need
from flows.step import Watch
from pipeline.plan import Step
from pipeline.store import Artifact


class _Stopped(BaseException):
    """Raised in a step's thread, through what watches its process: the run ends."""


@dataclass(frozen=True)
class Going:
    """A step that runs."""

    step: Step
    need: Need
    devices: tuple[str, ...]  # its own; () where it may use all
    started: float  # of time.monotonic()


@dataclass(frozen=True)
class End:
    """How a step ended: with an artifact, or with an error."""

    going: Going
    artifact: Artifact | None = None
    cached: bool = False  # another process made it in the meantime
    error: BaseException | None = None


class Crew:
    """The threads of one driver. They call `watch` and `say`, everything else is called by the driver's own."""

    def __init__(self) -> None:
        self.going: dict[str, Going] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._news = queue.SimpleQueue[End | tuple[str, dict[str, Any] | None] | Callable[[], None]]()
        self._over = threading.Event()

    def start(self, going: Going, work: Callable[[], tuple[Artifact, bool]]) -> None:
        """work: from the start of the step's process to its artifact, and whether that was there already."""
        def follow() -> None:
            try:
                artifact, cached = work()
            except BaseException as error:
                self._news.put(End(going, error=error))
            else:
                self._news.put(End(going, artifact, cached))

        self.going[going.step.name] = going
        self._threads[going.step.name] = threading.Thread(target=follow, daemon=True)
        self._threads[going.step.name].start()

    def watch(self, step: str, state: dict[str, Any] | None) -> None:
        if self._over.is_set():
            raise _Stopped
        self._news.put((step, state))

    def say(self, what: Callable[[], None]) -> None:
        """To be done by the driver's own thread."""
        self._news.put(what)

    def hear(self, told: Watch) -> End:
        """The next end of a step; its progress until then is told."""
        while not isinstance(news := self._news.get(), End):
            told(*news) if isinstance(news, tuple) else news()
        name = news.going.step.name
        self._threads.pop(name).join()
        del self.going[name]
        return news

    def halt(self) -> None:
        """End every step at its last checkpoint or part, and wait for that."""
        self._over.set()
        for thread in self._threads.values():
            thread.join()
