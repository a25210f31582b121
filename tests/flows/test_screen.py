"""What the terminal shows: tables fit it."""

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from flows import screen
from pipeline import supervisor


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch):
    """printed(width, columns, rows) -> the lines of the table in a terminal that wide."""

    def call(width: int, columns: list[str], rows: list[list[str]]) -> list[str]:
        console = Console(width=width, highlight=False, soft_wrap=True, record=True, file=io.StringIO(),
                          force_terminal=True)
        monkeypatch.setattr(screen, "console", console)
        screen.table("", columns, rows)
        return [line.rstrip() for line in console.export_text().splitlines() if line.strip()]

    return call


def test_brackets_stand_as_they_are(printed):
    """Names of folders and of settings, not marks of a style."""
    assert printed(40, ["file [b]", "is"], [["/a [x]/b", "[bold]"]]) == ["file [b]  is", "/a [x]/b  [bold]"]


def test_what_a_terminal_has_no_letter_for_is_shown_as_python_writes_it(monkeypatch):
    """Half a character of a damaged record, in UTF-8; an umlaut in ASCII."""
    for encoding, text, shown in (("utf-8", "ü \ud800", "ü \\ud800"), ("ascii", "ü", "\\xfc")):
        written = io.BytesIO()
        file = io.TextIOWrapper(written, encoding=encoding, write_through=True)
        monkeypatch.setattr(screen, "console", Console(file=file, soft_wrap=True))
        screen.say(text)
        assert written.getvalue().decode(encoding).strip() == shown


def test_a_reader_that_has_gone_ends_nothing():
    """`align run | head`: what is said afterwards goes nowhere, and the process comes to its end."""
    code = ("import sys\nfrom flows import screen\nscreen.say('first')\nsys.stdin.readline()\n"
            "for _ in range(9):\n    screen.say('x' * 9000)\nscreen.table('t', ['a'], [['b']])\n"
            "screen.errors.print('came to its end')\nsys.exit(7)")
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env={**os.environ, **supervisor.imports()})
    assert process.stdout.readline() == "first\n"
    process.stdout.close()
    process.stdin.write("\n")
    process.stdin.close()
    assert (process.stderr.read(), process.wait(30)) == ("came to its end\n", 7)


def test_times_are_read_at_a_glance():
    assert [screen.clock(s) for s in (6.6, 59.7, 751, 11100)] == ["0:07", "1:00", "12:31", "3:05:00"]
