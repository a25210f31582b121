"""A run's servers, as the next run of the workspace takes them up: the record of them, and whether they will do."""

import hashlib
import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any

from pipeline import files, waiting
from pipeline.engines.engine import FACTS, Keeping, adapter_base
from pipeline.engines.vllm import client, service
from pipeline.engines.vllm.service import Service, Settings


def made(model: Path, settings: Settings) -> dict[str, str]:
    """What determines a server but for its weights -> a hash of it, as some of it may be secret."""
    base = adapter_base(model) or model
    given = {name: value for name, value in os.environ.items() if name.startswith(("VLLM_", "CUDA_", "OMP_", "MKL_"))}
    things = {
        "architecture": {name: value for name, value in json.loads((base / FACTS).read_text()).items()
                         if name not in client.NOT_ARCHITECTURE},
        "arguments": [word for word in service.arguments(model, "", 0, settings) if word != str(base.resolve())],
        "surroundings": [given, *(service.engine_environment(settings, one) for one in range(settings.replicas))],
        "versions": [sys.version, *service.builds(), *map(importlib.metadata.version, ("torch", "transformers"))],
        "code": [files.file_hash(path) for path in sorted(Path(__file__).parent.glob("*.py"))],
    }
    return {name: hashlib.sha256(files.canonical(thing).encode()).hexdigest() for name, thing in things.items()}


def record(running: Service, model: Path, settings: Settings) -> dict[str, Any]:
    return {"seconds": settings.keep_seconds, "pids": [process.pid for process in running.processes],
            "urls": list(running.urls), "key": running.key, "log": str(running.log.resolve()),
            "model": str((adapter_base(model) or model).resolve()), "made": made(model, settings)}


def resume(found: dict[str, Any], model: Path, log: Path, settings: Settings, place: Path) -> Service:
    """Its servers go on to write to the log of the run that started them."""
    if settings.url:
        raise waiting.Unusable("engine.url names others")
    keepers = waiting.keepers(place, found)
    if any(keeper.poll() is not None for keeper in keepers):
        raise waiting.Unusable("it has ended")
    now = made(model, settings)  # looked at first: other code may write another record
    if other := [name for name in now if found["made"].get(name) != now[name]]:
        raise waiting.Unusable(f"this run needs another one: {', '.join(other)} changed")
    if not (Path(found["model"]) / FACTS).exists() or not any(Path(found["model"]).glob("*.safetensors")):
        raise waiting.Unusable(f"the weights it was started with are gone: {found['model']}")
    if silent := [url for url in found["urls"] if not service.answers(url, found["key"])]:
        raise waiting.Unusable(f"nothing answers at {', '.join(silent)}")
    return Service(tuple(found["urls"]), found["key"], keepers, log, settings.sleep_level)


KEEPING = Keeping(lambda s: 0.0 if s.url else s.keep_seconds, service.start, record, resume)
