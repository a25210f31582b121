"""`launcher=`: what starts a run's steps, by its configuration, and what cannot work, said before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows import machine
from flows.place import LOCAL, Place
from pipeline.config import flat, load_part, load_plugin, part_problems
from pipeline.errors import UserError
from pipeline.launchers import local
from pipeline.launchers.contract import Launcher

_MEETS = "job"  # as hardware.training.rendezvous: where the launcher says


def of(config: Mapping[str, Any]) -> Place:
    """The place that a run's configuration names; records of older code name none."""
    keys = {str(value) for key, value in flat(dict(config)).items() if key.endswith(".key") and value}
    return Place(load_part(config.get("launcher") or LOCAL, "launcher", Launcher), _devices(config), frozenset(keys))


def values_for(raw: dict[str, Any], known: Mapping[str, Any]) -> tuple[list[tuple[str, Any]], list[str]]:
    """A training over several nodes meets where the launcher that starts it there says."""
    nodes, meets = known.get("hardware.training.nodes", 1), "hardware.training.rendezvous"
    module = str(known.get("launcher.module", raw["launcher"]["module"]))
    if nodes == 1 or meets in known or not _plugin(module).places:
        return [], []
    return [(meets, _MEETS)], [f"{meets}={_MEETS}: on the first of the nodes that each step gets"]


def problems(config: Mapping[str, Any], given: frozenset[str]) -> list[str]:
    """given: the keys the user set."""
    spec, training = config["launcher"], config["hardware"]["training"]
    if found := part_problems(spec, "launcher", Launcher):
        return [f"{key}: {text}" for key, text in found]
    part = load_part(spec, "launcher", Launcher)
    name, plugin = part.name.rpartition(".")[2], part.plugin
    told = [f"launcher.{problem}" for problem in plugin.check(part.settings, Path(config["workspace"]))]
    if plugin.elsewhere and "hardware.warm_workers" in given and config["hardware"]["warm_workers"]:
        told.append(f"hardware.warm_workers: true, but with launcher={name} every step's process starts anew on its "
                    "node; leave it out, or launcher=local")
    if plugin.elsewhere and not plugin.places and training["nodes"] != 1:
        told.append(f"hardware.training.nodes: {training['nodes']}, but launcher={name} starts a step on one node; "
                    "launcher=slurm and launcher=ray start it on several")
    if not plugin.places and training["rendezvous"] == _MEETS:
        told.append(f"hardware.training.rendezvous: {_MEETS}, but launcher={name} does not say where nodes meet, "
                    "expected host:port of one of them")
    return told


def _plugin(module: str) -> Launcher:
    """The launcher of a module; that of this machine where the module is wrong, which is told elsewhere."""
    try:
        return load_plugin(module, "launcher", Launcher)
    except UserError:
        return local.LAUNCHER


def _devices(config: Mapping[str, Any]) -> dict[str, int]:
    """CUDA devices of a node by kind of stage; none on a CPU."""
    training, engine = config["hardware"]["training"], config["engine"]
    if not machine.on_cuda(str(training["device"])):
        return {}
    elsewhere = engine.get("url") is not None or "gpus_per_replica" in engine
    replicas = engine.get("replicas") or 1
    return {"train": training["processes"], "model": 1, "data": 0,
            "sample": 0 if elsewhere else replicas * machine.split(list(engine.get("arguments") or ()))}
