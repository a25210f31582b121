"""Steps run as tasks of a Ray cluster that is there already: a placement group with what the kind of stage needs, a
task on each of its nodes. A process here holds them for as long as the driver lives.
"""

import importlib.util
import json
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config import setting
from pipeline.launchers import distant, lease, node
from pipeline.launchers.contract import Launcher, Order, Resources

NODE = "ALIGNLOOP_NODE"  # number of a task's node among the step's


@dataclass(frozen=True)
class Asked(Resources):
    """What the tasks of a kind of stage ask for."""

    resources: dict[str, float] = field(default_factory=dict)  # of the cluster's own naming, such as {h100: 1}


@dataclass(frozen=True)
class Settings:
    """The cluster, and what tasks ask of it by kind of stage."""

    address: str | None = None  # host:port of its head, or auto: the one this machine belongs to
    train: Asked = field(default_factory=Asked)  # what trains, or scores with a model
    sample: Asked = field(default_factory=Asked)  # what samples
    model: Asked = field(default_factory=Asked)  # what holds a model on one device
    data: Asked = field(default_factory=Asked)  # what holds none
    python: str | None = None  # the interpreter there; null: the path of this one
    lost_seconds: float = setting(120.0, low=1.0)  # without a sign of the driver after which a step ends itself

    def check(self) -> list[tuple[str, str]]:
        host, colon, port = (self.address or "").rpartition(":")
        if self.address == "auto" or (host and colon and port.isdigit() and "/" not in host):
            return []
        return [("address", f"{self.address or 'not set'}, expected the head's host:port, or auto where this machine "
                            "belongs to the cluster")]


def check(settings: Settings, workspace: Path) -> list[str]:
    if importlib.util.find_spec("ray") is None:
        return ["module: ray is not installed here: pip install 'alignloop[ray]', or launcher=local"]
    if settings.address in (None, "auto"):
        return []
    host, _, port = str(settings.address).rpartition(":")
    try:
        socket.create_connection((host, int(port)), 5).close()
    except (OSError, OverflowError) as error:
        return [f"address: nothing answers at {settings.address} ({error}); ray status --address={settings.address} "
                "asks the same"]
    return []


def bundle(order: Order, settings: Settings) -> dict[str, float]:
    """What one node sets aside for the step, by Ray's names."""
    asked: Asked = vars(settings)[order.kind]
    gpus = order.devices if asked.gpus is None else asked.gpus
    wanted = {"CPU": float(asked.cpus or 1), "GPU": float(gpus), "memory": float((asked.memory_gb or 0) * 2**30)}
    return {name: number for name, number in {**wanted, **asked.resources}.items() if number}


def start(order: Order, settings: Settings) -> distant.Distant:
    held = lease.take(order.work, order.grace, settings.lost_seconds)
    job = {"address": settings.address, "bundle": bundle(order, settings), "nodes": order.nodes,
           "log": str(order.log), "words": node.command_line(order, held.token, settings.python, node=f"${NODE}")}
    words = [sys.executable, "-P", "-m", "pipeline.launchers.ray_host", json.dumps(job)]
    return distant.Distant(order, held, words, "the task on Ray", f"ray status --address={settings.address}")


LAUNCHER = Launcher(Settings, start, places=True, check=check)
