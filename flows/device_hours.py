"""What a step's time cost in devices: GPU-hours where GPUs are held, process-hours on a CPU."""

from collections.abc import Iterable, Mapping
from typing import Any

from flows import machine

GPU, CPU = "GPU", "process"  # what is counted; processes of a CPU share its cores


def held(runtime: Mapping[str, Any]) -> tuple[str, int]:
    """(GPU or CPU, how many) of a step with these values of its Runtime, on this machine.

    A stage that only asks a server of the user's holds one process: what stands behind the server is not known here.
    """
    engine, models = runtime.get("engine"), runtime.get("models") or runtime
    if engine is not None:
        on_gpus = machine.cuda() and not engine.get("url")
        each = engine.get("gpus_per_replica") or machine.split(list(engine.get("arguments") or ()))
        return (GPU, (engine.get("replicas") or 1) * each) if on_gpus else (CPU, engine.get("replicas") or 1)
    if "device" not in models:
        return CPU, 1
    return GPU if machine.on_cuda(str(models["device"])) else CPU, models["processes"] * models["nodes"]


def hours(manifests: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """{GPU: hours, CPU: hours} of these artifacts' making, wherever that was. One of older code counts as one process.

    The time is that of the step's processes: a GPU that the sampling engine holds between two steps is not in it.
    """
    found: dict[str, float] = {}
    for one in manifests:
        kind, number = one.get("devices") or (CPU, 1)
        found[kind] = found.get(kind, 0.0) + number * one["process_seconds"] / 3600
    return found
