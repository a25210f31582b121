"""What a scorer declares: completions -> scores. Higher is better; the scale is the scorer's own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.records import Group

Score = float | Mapping[str, float]
"""A score, or one that comes with others (a standard deviation, single passes): "" is the score itself, every other key
is put behind its name."""

ScoreGroups = Callable[[Sequence[Group]], Sequence[Sequence[Score]]]
"""Groups -> one list of scores per group, one score per completion. NaN: could not be scored."""


@dataclass(frozen=True)
class Scorer:
    """What a module in pipeline/rewards declares as SCORER. Constants may be functions of the settings instead."""

    Settings: type

    scorer: Callable[..., ScoreGroups]
    """(settings, *, model, runtime) -> how groups are scored; made once per stage, so that a model is loaded once.
    `runtime` (lm.settings.ModelRuntime) says where and how a model runs and changes no result. Models it `needs` come
    as further keywords.
    """

    needs_model: bool | Callable[[Any], bool] = False
    """Whether it takes a reward model made by an earlier step."""

    needs: frozenset[str] | Callable[[Any], frozenset[str]] = frozenset()
    """Further models of earlier steps it takes, of "policy" and "reference": their folders."""

    files: Callable[[Any], list[Path]] = lambda settings: []
    """settings -> files from outside it reads: a change of their content is a change of the scores."""

    suffixes: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ("",)
    """The keys of its mappings, where a score comes with others."""
