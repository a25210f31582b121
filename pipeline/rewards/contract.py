"""What a scorer declares: completions -> scores. Higher is better; the scale is the scorer's own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import setting
from pipeline.records import Group

Score = float | Mapping[str, float]
"""A score, or one that comes with others (a standard deviation, single passes): "" is the score itself, every other key
is put behind its name."""

ScoreGroups = Callable[[Sequence[Group]], Sequence[Sequence[Score]]]
"""Groups -> one list of scores per group, one score per completion. NaN: could not be scored."""


@dataclass(frozen=True)
class Budget:
    """The most that one run may ask of judges, over all its steps and however often it is resumed; null: no limit."""

    calls: int | None = setting(None, low=0)  # requests that were sent and not refused
    tokens: int | None = setting(None, low=0)  # of prompts and replies, as the server counts them
    money: float | None = setting(None, low=0)  # in the unit of `prices`


@dataclass(frozen=True)
class Limits:
    """How servers are asked. Never part of an artifact's key."""

    concurrency: int = setting(16, low=1, high=1024)  # calls in flight
    per_minute: float | None = setting(None, above=0.0)  # calls begun; null: no limit
    retries: int = setting(6, low=0)  # of one call: after 429, 5xx, a time-out, a lost connection
    timeout_seconds: float = setting(300.0, above=0.0)  # of one call; one far slower than the others is given up sooner
    # model: [of 1M prompt tokens, of 1M reply tokens]
    prices: dict[str, tuple[float, ...]] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)

    def check(self) -> list[tuple[str, str]]:
        return [(f"prices.{model}", f"{list(pair)}, expected two numbers: of a million prompt tokens, of a million "
                 "reply tokens") for model, pair in self.prices.items() if len(pair) != 2 or min(pair) < 0]


@dataclass(frozen=True)
class Desk:
    """What a scorer that asks a server, or leaves answers without a score, is given beside its settings."""

    limits: Limits = field(default_factory=Limits)
    answers: Path = Path("judge")
    """Folder in which answers are kept, so that nothing is asked twice; shared by all runs of a workspace."""
    run: str = ""
    """Whose budget is spent."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """What was asked, a row each, as JSON takes it: {id, why: "" or why there is no verdict, ...}; of a rule those
    answers alone that have no score. The scorer appends; the stage takes them away with the scores they belong to.
    """


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

    holds_model: bool = False
    """Whether it holds a model on one of the run's devices, whoever made it."""

    files: Callable[[Any], list[Path]] = lambda settings: []
    """settings -> files from outside it reads: a change of their content is a change of the scores."""

    suffixes: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ("",)
    """The keys of its mappings, where a score comes with others."""

    relative: bool | Callable[[Any], bool] = False
    """Whether a score says only how an answer does among the answers to its prompt that are there."""

    desk: bool = False
    """Whether `scorer` gets a Desk as `desk`: it asks a server, or says why an answer has no score."""

    check: Callable[[Any, Limits], list[tuple[str, str]]] = lambda settings, limits: []
    """(settings, limits) -> (key, problem) of what can be known before anything runs, not from the settings alone."""
