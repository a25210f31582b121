"""What a stage is and what it is given.

A stage is a module `pipeline/stages/<kind>.py` with `STAGE = Stage(...)` at its end; conf/stages.yaml says what it
takes from the groups.
Heavy imports (torch, transformers, vllm) go inside functions: planning imports every stage module.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import resource
import string
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.config import META, load_plugin, setting

STAGES = "pipeline.stages"


@dataclass(frozen=True)
class NoRuntime:
    """For stages without runtime settings."""


@dataclass
class Reporter:
    """Metrics and progress of one step, appended as JSON lines; counts end up in the artifact's manifest."""

    run: str = ""
    step: str = ""
    metrics_path: Path | None = None
    progress_path: Path | None = None
    counts: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    since: int | None = None  # byte of metrics.jsonl where this work's lines begin; None: nobody worked at it before
    _began: dict[str, float] = field(default_factory=dict)  # how far this process found the work, and when

    def metric(self, at: int, **values: float) -> None:
        """Report numbers of optimizer step (or item) `at`, once: what a killed process had reported stands."""
        if self.metrics_path is None or (at, frozenset(values)) in self._before:
            return
        line = {"step": self.step, "at": at, "time": round(time.time(), 3), **values}
        files.append_line(self.metrics_path, json.dumps(line))

    @functools.cached_property
    def _before(self) -> set[tuple[float, frozenset[str]]]:
        """(at, names of the numbers) of the lines that an earlier process of this work wrote."""
        if self.since is None or self.metrics_path is None or not self.metrics_path.exists():
            return set()
        with self.metrics_path.open("rb") as file:
            file.seek(self.since)
            lines = files.parsed_lines(file.read(), step=str, at=(int, float))
        return {(line["at"], frozenset(line) - {"step", "at", "time"}) for line in lines if line["step"] == self.step}

    def reported(self) -> int:
        """The `at` of this step's last line, 0 where there is none: how far a killed process had reported."""
        if self.metrics_path is None or not self.metrics_path.exists():
            return 0
        lines = files.parsed_lines(self.metrics_path.read_bytes(), step=str, at=(int, float))
        return next((int(line["at"]) for line in reversed(lines) if line["step"] == self.step), 0)

    def progress(self, done: int, total: int, unit: str = "") -> None:
        """Say how far the stage is. The supervisor's bar, `align status` and the dashboard read it.

        The first call says what an earlier process left done: the pace, and so the time left, is of this one's work.
        """
        if self.progress_path is None:
            return
        now = round(time.time(), 3)
        self._began = self._began or {"done": done, "time": now}
        state = {"step": self.step, "done": done, "total": total, "unit": unit, "time": now, "began": self._began}
        files.write_atomic(self.progress_path, json.dumps(state), durable=False)

    def count(self, **values: float) -> None:
        """Set numbers for the manifest (rows, tokens, means)."""
        self.counts.update(values)

    def drop(self, reason: str, number: int = 1) -> None:
        """Account for `number` rows left out because of `reason`."""
        if number:
            self.dropped[reason] = self.dropped.get(reason, 0) + number


@dataclass(frozen=True)
class Context:
    """Everything a stage gets. Nothing else reaches it: no global state, no config object."""

    settings: Any
    runtime: Any
    inputs: dict[str, tuple[Path, ...]]  # each input's folders, in recipe order
    digests: dict[str, tuple[str, ...]]  # the content digest of each of them
    work: Path  # survives a crash: checkpoints and scratch
    seed: int
    report: Reporter = field(default_factory=Reporter)

    @property
    def out(self) -> Path:
        """What is here when the stage ends becomes the artifact."""
        folder = self.work / "out"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def one(self, name: str) -> Path:
        (path,) = self.inputs[name]
        return path

    def optional(self, name: str) -> Path | None:
        return self.inputs[name][0] if self.inputs.get(name) else None


@dataclass(frozen=True)
class Kinds:
    """What groups a stage makes, as far as planning knows."""

    layouts: frozenset[str] = frozenset()
    """ "pairs", "lists", a make-up of its own, or "data": what a data set brings, known once it is read."""

    scores: frozenset[str] = frozenset()
    """The names of the scores that are on them."""

    def __or__(self, other: Kinds) -> Kinds:
        return Kinds(self.layouts | other.layouts, self.scores | other.scores)


@dataclass(frozen=True)
class Cost:
    """What a run of a stage takes and makes, as far as its settings tell: what `align plan` adds up."""

    prompts: int = 0
    """Prompts it hands on."""

    sampled_tokens: int = 0
    """Most tokens it samples for one prompt."""

    weights: int = 0
    """Float32 copies of the model it writes, optimizer state counting two."""

    checkpoints: bool = False
    """It keeps checkpoints while it runs."""


Counts = Mapping[str, float]  # of a manifest


def told(*templates: str) -> Callable[[Counts], list[str]]:
    """What a stage says: those of the templates, such as "win rate {win_rate:.1%}", whose counts are all there."""
    named = {text: {name for _, name, _, _ in string.Formatter().parse(text) if name} for text in templates}
    return lambda counts: [text.format_map(counts) for text, names in named.items() if names <= counts.keys()]


@dataclass(frozen=True)
class Stage:
    """What a module in pipeline/stages declares as STAGE."""

    Settings: type
    """Frozen dataclass: what can change the result (hashed into the artifact's key)."""

    run: Callable[[Context], None]
    """Reads context.inputs, writes everything under context.out."""

    version: int
    """Raised by hand when the meaning of its output changes."""

    inputs: dict[str, str]
    """Input name -> "one", "many" or "optional"."""

    seeded: bool | Callable[[Any], bool]
    """Whether the run's seed changes the result (False: shared by all seeds); a function of the settings where it
    depends on them.
    """

    seed: str = "train"
    """Which of SEEDS it draws from inside the loop; before it, what would be "train" is "sft"."""

    runtime: type = NoRuntime
    """Frozen dataclass: what cannot change the result (batch size per device, threads, part size ...)."""

    distributed: bool = False
    """It may run in several processes at once, as its runtime's `torchrun` says."""

    samples: bool = False
    """It uses the run's sampling engine."""

    devices: int | Callable[[Any, Any], int] = 0
    """How many its own processes hold a model on, the sampling engine's not among them; or a function of (settings,
    runtime)."""

    files: Callable[[Any, Any], list[Path]] = lambda settings, runtime: []
    """(settings, runtime) -> the files from outside it reads: their content is part of the key."""

    sources: Callable[[Any, Any], list[str]] = lambda settings, runtime: []
    """(settings, runtime) -> names that stand for content elsewhere, with its revision: part of the key as well."""

    check: Callable[[Any, Any], list[str]] = lambda settings, runtime: []
    """(settings, runtime) -> problems that can be known before anything runs."""

    foresee: Callable[[Any, Any], tuple[list[str], dict[str, int]]] | None = None
    """(settings, runtime) -> what `check` gives, and what the stage will count: for a check that reads its files."""

    required: Callable[[Any], dict[str, str]] = lambda settings: {}
    """settings -> the optional inputs they cannot do without, and what each gives."""

    wanted: Callable[[Any], set[str]] | None = None
    """settings -> the optional inputs they have a use for; None: all of them."""

    wants: Callable[[Any], dict[str, str]] = lambda settings: {}
    """settings -> what it needs of the data set's preferences ("pairs"), and the way out where they have none."""

    lacks: Callable[[Any, Any, dict[str, str]], list[str]] = lambda settings, runtime, wanted: []
    """(settings, runtime, what later steps want) -> problems of a data set that does not have it."""

    short: Callable[[Any, int], str | None] = lambda settings, held: None
    """(settings, prompts that its input holds) -> why they are too few, or None."""

    cost: Callable[[Any], Cost] = lambda settings: Cost()
    """settings -> what it takes and makes."""

    kinds: Callable[[Any, Kinds], Kinds] = lambda settings, given: Kinds()
    """(settings, kinds of its input `groups`) -> what groups it makes."""

    says: Callable[[Counts], list[str]] | None = None
    """The counts of its manifest -> what stands behind the step in a terminal; None: its first counts."""

    unsaid: str = ""
    """How the reasons begin for which rows are left out as the user has set it: they need no words."""

    misfit: Callable[[Any, Kinds], str | None] = lambda settings, given: None
    """(settings, kinds of its input `groups`) -> why it cannot take such groups, or None."""


@dataclass(frozen=True)
class Seeds:
    """The run's seeds by what they are for; each is `seed` where nothing else is said."""

    data: int = setting(low=0)  # which prompts each iteration samples from
    sft: int = setting(low=0)  # a model made from nothing, its fine-tuning, and what is sampled before the loop
    reward: int = setting(low=0)  # the reward model's training
    train: int = setting(low=0)  # everything in the loop: training, samples, draws


def seed_of(config: dict[str, Any], stage: Stage, iteration: int) -> int:
    """The seed of a step of that stage, iteration 0 before the loop. A run of older code has one seed for all."""
    name = "sft" if stage.seed == "train" and not iteration else stage.seed
    seed: int = config["seeds"][name] if "seeds" in config else config["seed"]
    return seed


def keyed(settings: Any) -> dict[str, Any]:
    """Settings as plain data, as an artifact's key holds them.

    A setting that was added later is left out while it has its default: what was made without it stays what it is.
    """
    found = {}
    for one in dataclasses.fields(settings):
        value = getattr(settings, one.name)
        if not one.metadata.get(META, {}).get("added") or value != one.default:
            found[one.name] = keyed(value) if dataclasses.is_dataclass(value) else _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [keyed(v) if dataclasses.is_dataclass(v) else v for v in value]
    return value


def load(kind: str) -> Stage:
    """The stage of that name. Raises UserError where its module declares none."""
    return load_plugin(f"{STAGES}.{kind}", f"stage.{kind}", Stage)


def derive_seed(seed: int, *parts: object) -> int:
    """A 63-bit seed from the run's seed and what it is for, independent of position, shard or worker."""
    text = "\x1f".join([str(seed), *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def peak_memory() -> int:
    """The most memory this process ever held, bytes."""
    # On Linux ru_maxrss starts at what the process that started this one held; the kernel's high-water mark does not.
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE) if status.exists() else None
    if found is not None:
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
