"""What starts a run's steps, and what one step asks of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import Part
from pipeline.launchers import local
from pipeline.launchers.contract import Launcher, Order, Started
from pipeline.plan import Step
from pipeline.stage import Stage

LOCAL = {"module": "pipeline.launchers.local"}


@dataclass(frozen=True)
class Place:
    """What starts the steps of a run."""

    part: Part[Launcher]
    devices: Mapping[str, int] = field(default_factory=dict)  # kind of stage -> CUDA devices it uses on a node
    names: frozenset[str] = frozenset()  # environment variables that hold keys

    @property
    def elsewhere(self) -> bool:
        return self.part.plugin.elsewhere

    def start(self, order: Order) -> Started:
        return self.part.plugin.start(order, self.part.settings)


HERE = Place(Part(LOCAL["module"], local.LAUNCHER, local.Settings()))


def order(place: Place, step: Step, spec: Path, log: Path, grace: float, timeout: float,
          environment: Mapping[str, str], run: str) -> Order:
    kind, runtime = kind_of(step.plugin, step.settings, step.runtime), dataclasses.asdict(step.runtime)
    nodes = runtime.get("models", runtime)["nodes"] if step.plugin.distributed else 1
    return Order(spec, log, grace, timeout, environment, run, step.name, kind, nodes,
                 place.devices[kind] if place.devices else 0, place.names)


def kind_of(stage: Stage, settings: Any, runtime: Any) -> str:
    """One of the contract's KINDS."""
    if stage.samples:
        return "sample"
    devices = stage.devices if isinstance(stage.devices, int) else stage.devices(settings, runtime)
    return "data" if not devices else "train" if stage.distributed else "model"
