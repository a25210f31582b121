"""What the terminal shows: sentences and tables that fit it, sizes, ages and numbers in few characters."""

import errno
import os
import re
from typing import Any

from rich.console import Console

from flows import layout

# C0 but tab and newline, DEL and C1, separators of lines, marks of direction, halves of surrogate pairs
_ACTING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")



class _Screen(Console):
    """Its reader may go (`align run | head`): rich would end the process, here the run goes on and is silent."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


console = _Screen(highlight=False, soft_wrap=True)
errors = _Screen(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    _print(console, text)


def _print(where: Console, text: str) -> None:
    """On a terminal that was closed nothing is shown from then on; the run is told so by SIGHUP, not by this. What it
    has no letter for is shown as Python writes it.
    """
    shown = text.encode(where.encoding, "backslashreplace").decode(where.encoding)
    try:
        where.print(shown, markup=False)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), where.file.fileno())


def paragraph(text: str) -> None:
    """Sentences, folded between words where a terminal is narrower; a line that begins with blanks stays whole."""
    say("\n".join(layout.wrapped(text, width(), below="  ")))


def harmless(text: str) -> str:
    """Somebody's text for a terminal: what would act on it (escapes, control characters, marks that turn the direction
    of writing) is shown as it is written in Python, `\\x1b`. Newlines and tabs stay.
    """
    return _ACTING.sub(lambda m: ascii(m.group())[1:-1], text)


def problems(texts: list[str]) -> None:
    """Every problem of the user's input, to stderr; in a terminal folded between words."""
    fitting = errors.width if errors.is_terminal else None
    for text in texts:
        _print(errors, "\n".join(layout.wrapped(f"error: {text}", fitting, below="  ")))


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
    return f"{max(0.0, seconds):.0f} s"  # a clock may have been set back


def clock(seconds: float) -> str:
    """0:07, 12:31, 3:05:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def brief(counts: dict[str, Any]) -> str:
    """A step's most telling counts in a few words."""
    shown = [(k, v) for k, v in counts.items() if isinstance(v, (int, float))][:4]
    return ", ".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in shown)

