"""The progress of a run: each running step on one line, what is finished on a line each with the numbers behind it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import progress
from rich.text import Text

from flows import forecast, layout, results, screen
from flows.forecast import Forecast
from flows.observer import Observer
from pipeline import store
from pipeline.plan import Step

_PLAIN_EVERY = 15.0  # seconds between progress lines where there is no terminal
_SPINNER = 2  # cells
_BELOW = 10  # blanks before what has no room behind its step


@dataclass
class _Running:
    """A step on the screen."""

    position: int  # of those that have started, from 1
    task: progress.TaskID
    began: float
    said: float
    state: dict[str, Any] | None = None


class Screen(Observer):
    """Progress of one run."""

    def __init__(self, steps: Sequence[str], expected: Forecast | None = None) -> None:
        """steps: names, in running order. expected: without it, the time left of the run is not told."""
        self._steps, self._expected = list(steps), expected or Forecast()
        self._width = max(map(len, steps), default=0) + len(f"{len(steps)}/{len(steps)} ")
        self._position, self._running = 0, dict[str, _Running]()
        self._progress = progress.Progress(progress.SpinnerColumn(), _Line(self.line), console=screen.console,
                                           transient=True, disable=not screen.console.is_terminal)
        self._progress.start()

    def started(self, step: Step) -> None:
        self._position += 1
        now, task = time.monotonic(), self._progress.add_task(step.name)
        self._running[step.name] = _Running(self._position, task, now, now)

    def progress(self, step: str, state: dict[str, Any] | None) -> None:
        if state is None or state.get("step") != step:
            return
        shown = self._running[step]
        shown.state = state
        if not screen.console.is_terminal and time.monotonic() - shown.said > _PLAIN_EVERY:
            shown.said = time.monotonic()
            screen.say(f"  ...     {self.line(step)}")

    def again(self, step: str, why: str) -> None:
        screen.paragraph(f"note: {why}; it is tried again")

    def finished(self, step: str, artifact: store.Artifact, cached: bool, seconds: float) -> None:
        self._expected = self._expected.after(step, None if cached else seconds)
        label, shown = self._label(step), self._running.pop(step, None)
        if shown is not None:
            self._progress.remove_task(shown.task)
        say_finished("cached" if cached else "done", label, f" {seconds:8.1f} s", artifact)

    def gate(self, lines: list[str]) -> None:
        for line in lines:
            screen.say(line)

    def ended(self, outcome: str) -> None:
        self._progress.stop()

    def line(self, step: str) -> str:
        """Of a step that is running now; the first of them tells how long the run still takes."""
        going, now = dict(self._running), time.monotonic()  # what is shown is drawn by a thread of its own
        if step not in going:
            return ""
        own = {name: (now - one.began, forecast.left_of_step(one.state)) for name, one in going.items()}
        rest = self._expected.left(own) if step == next(iter(own)) else (0.0, True)
        return running(self._label(step), going[step].state, *own[step], rest, screen.width())

    def _label(self, step: str) -> str:
        position = self._running[step].position if step in self._running else self._position
        return f"{position:>2}/{len(self._steps)} {step}".ljust(self._width)


def say_finished(word: str, label: str, took: str, artifact: store.Artifact) -> None:
    """A line, or more where the numbers have no room behind the step."""
    head = f"  {word:<7} {label}{took}  "
    told, width = results.of(artifact), screen.width()
    if width is None or len(head + told) <= width:
        screen.say(head + told)
    else:
        screen.say("\n".join([head.rstrip(), *layout.wrapped(told, width, " " * _BELOW, " " * _BELOW)]))


class _Line(progress.ProgressColumn):
    """A column that asks for its text."""

    max_refresh = 0.5

    def __init__(self, line: Any) -> None:
        super().__init__()
        self._line = line

    def render(self, task: progress.Task) -> Text:
        return Text(self._line(task.description), no_wrap=True, overflow="ellipsis")


def running(label: str, state: Mapping[str, Any] | None, elapsed: float, own: float | None,
            rest: tuple[float, bool], width: int | None) -> str:
    """One line: how far, how fast, how long still, step and run; what has no room is left out, the rate first.

    own: seconds left of the step, None where nothing is known; then the time it has taken is told. rest: of the run,
    and whether all of it is known.
    """
    state = state or {"done": 0, "total": 0, "unit": ""}
    speed = forecast.pace(state) if "time" in state else None
    count = f"{state['done']}/{state['total']} {state['unit']}".rstrip() if state["total"] else state["unit"]
    rate = "" if speed is None else f"{speed:.3g}/s" if speed >= 0.1 else f"{60 * speed:.3g}/min"
    time_left = f"{screen.clock(elapsed)} elapsed" if own is None else f"{screen.clock(own)} left"
    seconds, whole = rest
    of_run = f"run {'' if whole else '> '}{screen.clock(seconds)} left" if seconds else ""
    found = [label, count, rate, time_left, of_run]
    for dropped in (None, rate, of_run, count):
        found = [text for text in found if text and text is not dropped]
        line = "  ".join(found)
        if width is None or len(line) <= width - _SPINNER:
            break
    return line
