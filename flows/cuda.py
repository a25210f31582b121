"""What `hardware=cuda` brings along: the engine, the training processes and the memory of every device put to use."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flows import machine, memory, trainings
from pipeline.errors import UserError

_LARGE = 1e9  # weights from which on layers are computed twice instead of kept: 8 B keep 254 KB a token and layer
# What vLLM may take of a device. A device is the engine's alone while it samples; the rest is for the contexts of other
# processes, CUDA's graphs and a display.
_SHARE = 0.85
_FEWEST = 64  # tokens of context: the probe of the weights needs 32


def values_for(raw: dict[str, Any], known: Mapping[str, Any]) -> tuple[list[tuple[str, Any]], list[str]]:
    """What the devices bring along, (key, value), and a remark. raw: the groups; known: keys set otherwise."""
    device = known.get("hardware.training.device", raw["hardware"]["training"]["device"])
    if not machine.on_cuda(str(device)):
        return [], []
    groups = OmegaConf.create(raw)
    for key, value in known.items():
        with contextlib.suppress(OmegaConfBaseException, AttributeError):  # a wrong key is told of elsewhere
            OmegaConf.update(groups, key, value, force_add=True)

    def chosen(key: str) -> Any:
        try:
            return OmegaConf.select(groups, key, default=None)
        except OmegaConfBaseException:
            return None

    given = chosen("hardware.devices")
    devices = given if isinstance(given, int) and given > 0 else len(machine.devices()) or 1
    wanted: dict[str, Any] = {f"engine.{key}": value for key, value in _engine(chosen, devices).items()
                              if key in raw["engine"]}
    processes, nodes = known.get("hardware.training.processes", devices), known.get("hardware.training.nodes", 1)
    if (devices > 1 or nodes != 1) and known.get("hardware.training.strategy") != "none":
        wanted["hardware.training.processes"] = devices
        wanted |= {"hardware.training.strategy": "fsdp2"} if (processes, nodes) != (1, 1) else {}
    weights = trainings.pretrained_weights({key: chosen(f"model.{key}") for key in ("path", "base")})
    if weights is not None and weights >= _LARGE:
        wanted["hardware.training.gradient_checkpointing"] = True
    values = [(key, value) for key, value in wanted.items() if key not in known]
    here = "" if given or machine.devices() else _planned_for_one()
    said = ", ".join(f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values)
    return values, [f"{devices} CUDA device{'s' if devices > 1 else ''}{here}: {said}"] if said or here else []


def _engine(chosen: Any, devices: int) -> dict[str, Any]:
    """Settings of an engine that has the devices to itself while it samples; of servers of the user's, the numbers."""
    found: dict[str, Any] = {"dtype": "bfloat16"}
    if chosen("engine.url") is not None:
        return found
    found |= {"eager": False, "chunked_prefill": True, "sleep_level": 2, "gpu_memory_utilization": _SHARE}
    if longest := _longest(chosen):
        found["context_length"] = longest
    if chosen("engine.gpus_per_replica") is None:
        found["replicas"] = max(1, devices // machine.split(list(chosen("engine.arguments") or ())))
    else:  # Ray places the replicas, wherever in the cluster
        found["gpus_per_replica"] = machine.split(list(chosen("engine.arguments") or ()))
    return found


def _longest(chosen: Any) -> int | None:
    """Tokens of the longest prompt with its longest answer, at most what the model has positions for."""
    prompt, answer = chosen("model.max_prompt_tokens"), chosen("sampling.max_tokens")
    if not isinstance(prompt, int) or not isinstance(answer, int):
        return None
    later = chosen("sampling.later")
    nodes = later.values() if isinstance(later, Mapping) else ()
    answers = [node["max_tokens"] for node in nodes if isinstance(node, Mapping) and "max_tokens" in node]
    longest = max(_FEWEST, prompt + max([answer, *answers]))
    room = memory.positions({key: chosen(f"model.{key}") for key in ("path", "base", "arch")})
    return longest if room is None else min(longest, room)


def _planned_for_one() -> str:
    return (f", as no hardware.devices is given and none can be used here ({machine.why_none()}): a plan for another "
            "machine")


def problems(config: Mapping[str, Any]) -> list[str]:
    """What the devices here cannot run, before anything starts."""
    training = config["hardware"]["training"]
    if training["device"] != "cuda":
        return []
    here = machine.devices()
    if not here:
        return [f"hardware: cuda, but no CUDA device can be used here: {machine.why_none()}; or hardware=cpu"]
    found = []
    for key in ("hardware.training.processes", "hardware.devices"):
        number = config["hardware"]["devices"] if key == "hardware.devices" else training["processes"]
        if number is not None and number > len(here):
            found.append(f"{key}: {number}, but torch can use {len(here)} CUDA device{'s'[:len(here) > 1]} here "
                         f"({', '.join(sorted({one.name for one in here}))}); CUDA_VISIBLE_DEVICES hides devices")
    return found


def require(config: Mapping[str, Any]) -> None:
    """Raises UserError with `problems`."""
    if wrong := problems(config):
        raise UserError(*wrong)
