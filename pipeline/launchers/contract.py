"""What a module in pipeline/launchers declares, and what it is given: one step to start.

Whichever launcher starts it, the step's process reads step.json and leaves its payload in the work folder beside it. So
the launcher is in no key and changes no byte. Every node sees the workspace under the same path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.config import setting

# What a launcher has resources for: stages that train or score with a model, perhaps in several processes, that sample,
# that hold a model on one device, and all others.
KINDS = ("train", "sample", "model", "data")
# Names of environment variables that a step's process needs wherever it runs begin so.
_SENT = ("ALIGNLOOP_", "HF_", "OMP_", "GOMP_", "NCCL_", "VLLM_", "TOKENIZERS_", "PYTHONUNBUFFERED")
_NOT_SENT = "HF_HOME"  # a folder of this machine


class Lost(Exception):
    """The step's process has gone for a reason that is not its own. The text: what happened, the way out."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code  # 143 where somebody stopped it


@dataclass(frozen=True)
class Order:
    """One step to start."""

    spec: Path  # step.json; its folder is the step's work folder
    log: Path  # gets what the step prints, appended
    grace: float  # seconds between SIGTERM and SIGKILL
    timeout: float  # seconds it may run, 0: no limit
    environment: Mapping[str, str]  # of a process on this machine
    run: str = ""
    step: str = ""
    kind: str = "data"  # one of KINDS
    nodes: int = 1  # that its processes are spread over
    devices: int = 0  # CUDA devices of each of them that it uses
    names: frozenset[str] = frozenset()  # further environment variables that it needs wherever it runs
    module: str = "pipeline.worker"  # what runs step.json

    @property
    def work(self) -> Path:
        return self.spec.parent

    @property
    def sent(self) -> dict[str, str]:
        """Of `environment`, what goes along to another machine."""
        return {name: value for name, value in self.environment.items()
                if name in self.names or (name.startswith(_SENT) and name != _NOT_SENT)}


class Started(Protocol):
    """A step's process, as the driver sees it."""

    def poll(self, seconds: float) -> int | None:
        """Its exit code, None while it runs; looks for so long. Raises Lost."""

    def stop(self) -> None:
        """End everything the step has started, and wait."""

    def waiting(self) -> str:
        """What it waits for before it runs, "" once it does."""


@dataclass(frozen=True)
class Resources:
    """What a kind of stage asks the cluster for, per node."""

    cpus: int | None = setting(None, low=1)  # cores; null: the cluster's default
    gpus: int | None = setting(None, low=0)  # devices; null: what hardware and engine use there, none on a CPU
    memory_gb: float | None = setting(None, above=0.0)  # null: the cluster's default


@dataclass(frozen=True)
class Launcher:
    """What a module in pipeline/launchers declares as LAUNCHER."""

    Settings: type

    start: Callable[[Order, Any], Started]
    """(order, settings) -> the step's process. Raises Lost where none could be started."""

    elsewhere: bool = True
    """Whether the process may run on another machine, which this one's servers on loopback cannot serve."""

    places: bool = False
    """Whether it starts a training over several nodes on all of them, and tells them where they meet."""

    check: Callable[[Any, Path], list[str]] = lambda settings, workspace: []
    """(settings, workspace) -> what cannot work from this machine, as "key: text"."""
