"""Steps behind a prefix: where the command goes, what a shell makes of it, what is told at plan."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import problems_of
from pipeline.launchers import command

HARD = ["python", "a b", "it's", '"', "$HOME", "*", "\\", ";"]


@pytest.mark.parametrize("prefix, expected", [
    (["env", "X=1"], ["env", "X=1", *HARD]),
    (["box", "{words}", "last"], ["box", *HARD, "last"]),
    (["on-{kind}", "{run}/{step}"], ["on-train", "r/train[1]", *HARD]),
    (["ssh", "node2", "cd /x && exec {command}"], ["ssh", "node2", f"cd /x && exec {shlex.join(HARD)}"]),
])
def test_where_the_command_goes(prefix, expected):
    assert command.arguments(prefix, HARD, run="r", step="train[1]", kind="train") == expected


def test_a_shell_reads_the_words_back():
    """As ssh does: the remote shell gets one text."""
    show = [sys.executable, "-c", "import sys; print(sys.argv[1:])", *HARD]
    words = command.arguments(["sh", "-c", "exec {command}"], show)
    assert subprocess.run(words, capture_output=True, text=True).stdout.strip() == str(HARD)


@pytest.mark.parametrize("prefix, problem", [
    ([], "launcher.prefix: empty, expected a list of words such as [ssh, node2]"),
    (["ssh", "{host}"], "launcher.prefix: {host} stands for nothing, expected some of {command}, {words}, {run}, "
                        "{step}, {kind}"),
    (["sh", "-c", "cd x; {words}"], "launcher.prefix: 'cd x; {words}': {words} is a word of its own; within a text it "
                                    "is {command}"),
])
def test_a_wrong_prefix_is_told(prefix, problem):
    assert problems_of(command.Settings, {"prefix": prefix}, "launcher") == [problem]


def test_what_a_shell_would_take_apart_is_told_at_plan():
    odd = Path("/data/my runs")
    assert command.check(command.Settings(["env"]), Path("/data")) == []
    (told,) = command.check(command.Settings(["env"]), odd)
    assert told.startswith("prefix: '/data/my runs' is in the command and means something to a shell")
    assert command.check(command.Settings(["sh", "-c", "{command}"]), odd) == []
    assert command.check(command.Settings(["no-such-program"]), Path("/data")) == [
        "prefix: no program 'no-such-program' is found here"]
