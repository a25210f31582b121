"""What the terminal shows: a bar with rate and ETA in a terminal, plain lines elsewhere, tables at the end."""

import re
import time
from typing import Any

from rich import progress
from rich.console import Console

from flows import layout
from flows.observer import Observer
from pipeline import store
from pipeline.plan import Step

_PLAIN_EVERY = 15.0  # seconds between progress lines where there is no terminal

# C0 but tab and newline, DEL and C1, separators of lines, marks of direction, halves of surrogate pairs
_ACTING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


class Screen(Observer):
    """Progress of one run."""

    def __init__(self, number_of_steps: int) -> None:
        self._total = number_of_steps
        self._position = 0
        self._last_line = 0.0
        self._progress = progress.Progress(
            progress.SpinnerColumn(), progress.TextColumn("{task.description}"), progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(), progress.TextColumn("{task.fields[unit]}"), progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)
        self._progress.start()
        self._task: Any = None

    def started(self, step: Step) -> None:
        self._position += 1
        self._last_line = time.monotonic()
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(self._label(step.name), total=None, unit="")

    def progress(self, step: str, state: dict[str, Any] | None) -> None:
        if state is None or state.get("step") != step:
            return
        done, total, unit = state["done"], state["total"], state["unit"]
        self._progress.update(self._task, completed=done, total=total or None, unit=unit)
        if not console.is_terminal and time.monotonic() - self._last_line > _PLAIN_EVERY:
            self._last_line = time.monotonic()
            console.print(f"  ...     {step:<20} {done}/{total} {unit}", markup=False)

    def finished(self, step: str, artifact: store.Artifact, cached: bool, seconds: float) -> None:
        word, counts = "cached" if cached else "done", brief(artifact.manifest["counts"])
        if lost := artifact.manifest["dropped"]:
            counts += f"; left out or cut: {brief(dict(sorted(lost.items(), key=lambda reason: -reason[1])))}"
        console.print(f"  {word:<7} {self._label(step):<28} {seconds:8.1f} s  {counts}", markup=False)

    def gate(self, lines: list[str]) -> None:
        for line in lines:
            say(line)

    def ended(self, outcome: str) -> None:
        self._progress.stop()

    def _label(self, step: str) -> str:
        return f"{self._position:>2}/{self._total} {step}"


def say(text: str) -> None:
    console.print(text, markup=False)


def paragraph(text: str) -> None:
    """Sentences, folded between words where a terminal is narrower; a line that begins with blanks stays whole."""
    say("\n".join(layout.wrapped(text, width(), below="  ")))


def harmless(text: str) -> str:
    """Somebody's text for a terminal: what would act on it (escapes, control characters, marks that turn the direction
    of writing) is shown as it is written in Python, `\\x1b`. Newlines and tabs stay.
    """
    return _ACTING.sub(lambda m: ascii(m.group())[1:-1], text)


def problems(texts: list[str]) -> None:
    """Every problem of the user's input, one a line, to stderr."""
    for text in texts:
        errors.print(f"error: {text}", markup=False)


def table(title: str, columns: list[str], rows: list[list[str]], spare: tuple[str, ...] = ()) -> None:
    """Print it as flows/layout.py lays it out in this terminal; `spare`: columns that go first. Elsewhere a row is a
    line, however long."""
    head, *body = layout.lines(columns, rows, width(), spare)
    if title:
        paragraph(title)
    console.print(head, markup=False, style="bold")
    for line in body:
        say(line)


def width() -> int | None:
    """Of the terminal; None where what is printed goes elsewhere."""
    return console.width if console.is_terminal else None


def size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def number(value: float | None) -> str:
    """8.03 B, 134.5 M, 12,000."""
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if value is not None and value >= size:
            return f"{value / size:.4g} {unit}"
    return "?" if value is None else f"{value:,.0f}"


def age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def brief(counts: dict[str, Any]) -> str:
    """A step's most telling counts in a few words."""
    shown = [(k, v) for k, v in counts.items() if isinstance(v, (int, float))][:4]
    return ", ".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in shown)

