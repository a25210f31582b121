"""What the terminal shows: tables fit it."""

import io

import pytest
from rich.console import Console

from flows import screen
from pipeline import store


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


def test_a_finished_step_says_what_it_left_out_and_why_the_most_first(monkeypatch: pytest.MonkeyPatch, tmp_path):
    console = Console(width=200, highlight=False, soft_wrap=True, record=True, file=io.StringIO())
    monkeypatch.setattr(screen, "console", console)
    shown = screen.Screen(3)
    for dropped in ({}, {"pref_long_prompt": 7, "sft_long_prompt": 119}):
        shown.finished("tokens", store.Artifact("tokenize", "k", tmp_path, {"counts": {"sft": 81}, "dropped": dropped}),
                       False, 2.0)
    shown.ended("done")
    lines = console.export_text().splitlines()
    assert lines[0].endswith("2.0 s  sft 81")
    assert lines[1].endswith("2.0 s  sft 81; left out or cut: sft long prompt 119, pref long prompt 7")
