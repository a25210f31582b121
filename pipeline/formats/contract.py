"""What a data format declares, and what a source of published judgments does."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.formats.splits import Imported
from pipeline.records import Completion, Group

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

    follow_ups: Callable[[Path, Any], dict[str, str]] | None = None
    """(root, settings) -> second turns by question, for benchmarks that have them."""

    given_follow_ups: Callable[[Path, Any], dict[str, str]] | None = None
    """(root, settings) -> first answers that come with the benchmark, by question."""

    export: Callable[[Iterable[Group], dict[str, Group], str, Path, Any], int] | None = None
    """(groups, second turns, model's name, folder, settings) -> answers written in the benchmark's own format."""


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
