"""What follows from this machine: options nobody chose, the precision of `auto`, the memory there is. No torch."""

import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline import supervisor

_TENSOR_PARALLEL = re.compile(r"--tensor-parallel-size(?:=(\d+))?$")


def automatic(choices: dict[str, str]) -> list[str]:
    """Choices that follow from this machine where the user set nothing; each is printed as a note."""
    notes = []
    if "hardware" not in choices and cuda():
        choices["hardware"] = "cuda"
        notes.append(f"{len(devices())} x {devices()[0].name} here: hardware=cuda")
    if "engine" not in choices and importlib.util.find_spec("vllm") is None:
        choices["engine"] = "transformers"
        notes.append("vllm is not installed here: engine=transformers samples instead, slower")
    return notes


def precision_of(device: str, cpu: Path = Path("/proc/cpuinfo")) -> str:
    """bfloat16 where `device` computes in it, float32 elsewhere: a CPU that emulates it is twenty times slower.

    device: "cpu", "cuda" or "auto". CUDA devices that can run the engine all have it.
    """
    if on_cuda(device):
        return "bfloat16"
    words = set(cpu.read_text().split()) if cpu.exists() else set()
    return "bfloat16" if words & {"avx512_bf16", "amx_bf16", "bf16", "asimdbf16"} else "float32"


@dataclass(frozen=True)
class Device:
    """A CUDA device as torch sees it."""

    name: str
    memory: int  # bytes


def cuda() -> bool:
    """Whether torch can use a CUDA device here."""
    return bool(devices())


def on_cuda(device: str) -> bool:
    """Whether `device` ("cpu", "cuda" or "auto") is a CUDA device."""
    return device == "cuda" or (device == "auto" and cuda())


def devices() -> tuple[Device, ...]:
    """The CUDA devices that torch can use here: those that CUDA_VISIBLE_DEVICES leaves it."""
    places = (*Path("/dev").glob("nvidia*"), *Path("/dev").glob("dxg"))  # of any driver; dxg: Windows' Linux
    return _asked()[0] if places or shutil.which("nvidia-smi") else ()


def why_none() -> str:
    """Why torch can use no CUDA device here, and which driver it wants."""
    return _asked()[1]


@functools.cache
def _asked() -> tuple[tuple[Device, ...], str]:
    """What torch says, in a process of its own: seconds, and planning imports no torch."""
    done = subprocess.run([sys.executable, "-P", "-m", "pipeline.lm.devices"], capture_output=True, text=True,
                          env={**os.environ, **supervisor.imports()})
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        return (), f"torch cannot be asked: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
    told = json.loads(lines[-1])
    return tuple(Device(name, memory) for name, memory in told["devices"]), told["why"]


def memory(device: str) -> int:
    """Bytes of one device: of the smallest CUDA device, or of this machine; 0 where it cannot be told.

    device: "cpu", "cuda" or "auto".
    """
    if on_cuda(device):
        return min((one.memory for one in devices()), default=0)
    return int(psutil.virtual_memory().total)


def gpus() -> list[str]:
    """The CUDA devices this process may use, by what CUDA_VISIBLE_DEVICES calls them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    here = cuda() and shutil.which(query[0]) is not None
    return subprocess.run(query, capture_output=True, text=True).stdout.split() if here else []


def split(arguments: list[str]) -> int:
    """Devices that one replica of vLLM takes, by its arguments."""
    for i, word in enumerate(map(str, arguments)):
        if match := _TENSOR_PARALLEL.match(word):
            following = arguments[i + 1] if i + 1 < len(arguments) else "1"
            number = match[1] or str(following)
            return max(1, int(number)) if number.isdigit() else 1
    return 1
