"""What follows from this machine: options nobody chose, the precision of `auto`, the memory there is. No torch."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import psutil


def automatic(choices: dict[str, str]) -> list[str]:
    """Choices that follow from this machine where the user set nothing; each is printed as a note."""
    notes = []
    if "hardware" not in choices and cuda():
        choices["hardware"] = "cuda"
        notes.append("a CUDA device is here: hardware=cuda")
    if "engine" not in choices and importlib.util.find_spec("vllm") is None:
        choices["engine"] = "transformers"
        notes.append("vllm is not installed here: engine=transformers samples instead, slower")
    return notes


def precision_of(device: str, cpu: Path = Path("/proc/cpuinfo")) -> str:
    """bfloat16 where `device` computes in it, float32 elsewhere: a CPU that emulates it is twenty times slower.

    device: "cpu", "cuda" or "auto". CUDA devices that can run the engine all have it.
    """
    if device == "cuda" or (device == "auto" and cuda()):
        return "bfloat16"
    words = set(cpu.read_text().split()) if cpu.exists() else set()
    return "bfloat16" if words & {"avx512_bf16", "amx_bf16", "bf16", "asimdbf16"} else "float32"


def cuda() -> bool:
    """Whether a CUDA device is here."""
    return Path("/dev/nvidia0").exists()


def memory(device: str) -> int:
    """Bytes of one device: of the first CUDA device, or of this machine; 0 where it cannot be told.

    device: "cpu", "cuda" or "auto".
    """
    if device == "cuda" or (device == "auto" and cuda()):
        query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        found = subprocess.run(query, capture_output=True, text=True).stdout.split() if shutil.which(query[0]) else []
        return int(found[0]) * 2**20 if found and found[0].isdigit() else 0
    return int(psutil.virtual_memory().total)


def gpus() -> list[str]:
    """The CUDA devices this process may use, by what CUDA_VISIBLE_DEVICES calls them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    here = cuda() and shutil.which(query[0]) is not None
    return subprocess.run(query, capture_output=True, text=True).stdout.split() if here else []
