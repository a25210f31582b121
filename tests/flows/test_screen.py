"""What the terminal shows: tables fit it."""

import io

import pytest
from rich.console import Console

from flows import screen


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


def test_times_are_read_at_a_glance():
    assert [screen.clock(s) for s in (6.6, 59.7, 751, 11100)] == ["0:07", "1:00", "12:31", "3:05:00"]
