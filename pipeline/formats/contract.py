"""What a data format declares, what a shape of rows does, and what a source of published judgments does."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.formats.splits import Imported
from pipeline.records import Completion, Group, Message, Target

Asked = Sequence[tuple[Group, Completion, Completion]]


@dataclass(frozen=True)
class Format:
    """What a module in pipeline/formats declares as FORMAT."""

    Settings: type

    expected: str
    """What data.root must name, for messages."""

    files: Callable[[Path, Any], list[Path]]
    """(root, settings) -> the files it reads: their content is part of the data's key."""

    read: Callable[[Path, Any], Imported]
    """(root, settings) -> the groups of every split. Raises UserError naming every bad row by file:line."""

    resumed: Callable[[Path, Any, Path], Imported] | None = None
    """(root, settings, folder) -> as `read`, with what is read kept in the folder, so that a killed import goes on
    behind it; its `groups` takes how many groups of each split are written already. None: it is read anew.
    """

    sources: Callable[[Path, Any], list[str]] = lambda root, settings: []
    """(root, settings) -> names that stand for content elsewhere (a hub's, with its commit): part of the key too."""

    rootless: Callable[[Any], bool] = lambda settings: False
    """settings -> whether they say themselves where the data are, so that data.root may be null."""

    follow_ups: Callable[[Path, Any], dict[str, str]] | None = None
    """(root, settings) -> second turns by question, for benchmarks that have them."""

    given_follow_ups: Callable[[Path, Any], dict[str, str]] | None = None
    """(root, settings) -> first answers that come with the benchmark, by question."""

    export: Callable[[Iterable[Group], dict[str, Group], str, Path, Any], int] | None = None
    """(groups, second turns, model's name, folder, settings) -> answers written in the benchmark's own format."""


class Left(Exception):
    """Of a row that is as its data set means it and teaches nothing: it is left out and counted by this text."""


@dataclass(frozen=True)
class Example:
    """What a row says: a prompt with its answers."""

    prompt: list[Message]
    answers: list[Message] = field(default_factory=list)
    """Two or more: the preferred first. One: a demonstration, or one with a label. None: a prompt to sample from."""

    label: bool | None = None
    scores: list[float] = field(default_factory=list)  # of the answers, larger is better; empty: none are known
    target: Target | None = None
    rationale: str = ""
    id: str = ""  # of the row's own
    template: str = ""  # as Group.template
    split: str = ""  # "eval" for a benchmark's question; '' as the number of answers says
    dataset: str = ""  # '': the file's name
    unread: tuple[str, ...] = ()  # parts of the row that are left behind
    fixed: str = ""  # what had to be put right, counted by this text
    kept: str = ""  # why data.format.ties=drop would leave it out, counted by this text


@dataclass(frozen=True)
class Shape:
    """What a module in pipeline/formats/shapes declares as SHAPE: one way in which rows are written."""

    name: str
    """What the rows are called on the screen: "ranked lists"."""

    needs: tuple[tuple[str, ...], ...]
    """Keys that tell the shape, one group or another. Of all shapes the one with the most of them in a row reads it."""

    read: Callable[[dict[str, Any], Any], Sequence[Example | Left]]
    """(row, Settings of pipeline.formats.files) -> its examples, a Left for each that teaches nothing. Raises
    ValueError saying what is wrong with the row, Left where all of it teaches nothing.
    """

    reads: tuple[str, ...] = ()
    """Further keys that it reads. Every other key of a row is named and counted."""


@dataclass(frozen=True)
class Judgments:
    """What a module that reads a judge's published decisions declares as JUDGMENTS."""

    Settings: type

    files: Callable[[Any], list[Path]]
    """settings -> the files it reads."""

    preferences: Callable[[Asked, Any], tuple[list[float | None], dict[str, int]]]
    """((group, answer, baseline) ..., settings) -> P(answer is better), None where undecided; and why, counted."""

    published: Callable[[Asked, Any, int, int, float], dict[str, Any]] | None = None
    """(asked, settings, seed, resamples, confidence) -> the benchmark's own statistic of the same judgments."""
