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


def test_times_are_read_at_a_glance():
    assert [screen.clock(s) for s in (6.6, 59.7, 751, 11100)] == ["0:07", "1:00", "12:31", "3:05:00"]
