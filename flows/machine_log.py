"""How busy the machine is while a run goes on: `runs/NAME/machine.jsonl`, a line every few seconds.

    {"time", "cpu": share of all cores, "memory_mb": in use, "own_memory_mb": by the run's processes,
     "gpus": [{"busy": share, "memory_mb"}, ...] where NVML or nvidia-smi tells}
"""

import contextlib
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from pipeline import files

FILE = "machine.jsonl"
_EVERY, _LATER, _LONG = 5.0, 30.0, 3600.0  # seconds between lines; after the first hour
_QUERY = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]


@contextlib.contextmanager
def sampled(run_dir: Path, every: float = _EVERY) -> Iterator[None]:
    """Write lines while the body runs. It never fails the run: a line that cannot be written is the last one."""
    over = threading.Event()
    thread = threading.Thread(target=_sample, args=(run_dir / FILE, every, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(2.0)


def _sample(path: Path, every: float, over: threading.Event) -> None:
    began, own = time.monotonic(), psutil.Process()
    psutil.cpu_percent()  # of the time between two calls
    with contextlib.suppress(OSError, psutil.Error):
        while not over.wait(every if time.monotonic() - began < _LONG else max(every, _LATER)):
            files.append_line(path, json.dumps(state(own)))


def state(own: psutil.Process) -> dict[str, Any]:
    """A line. own: the process whose memory, with all its descendants', is the run's."""
    memory = own.memory_info().rss
    for child in own.children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            memory += child.memory_info().rss
    gpus = _gpus()
    return {"time": round(time.time(), 1), "cpu": round(psutil.cpu_percent() / 100, 3),
            "memory_mb": round(psutil.virtual_memory().used / 2**20), "own_memory_mb": round(memory / 2**20),
            **({"gpus": gpus} if gpus else {})}


def _nvml() -> list[dict[str, float]] | None:
    """By the driver's own library, where its Python side is installed (nvidia-ml-py); None where it tells nothing."""
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            found = []
            for i in range(pynvml.nvmlDeviceGetCount()):
                gpu = pynvml.nvmlDeviceGetHandleByIndex(i)
                busy, used = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu, pynvml.nvmlDeviceGetMemoryInfo(gpu).used
                found.append({"busy": busy / 100, "memory_mb": round(used / 2**20)})
            return found
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # not installed, no driver, a GPU that does not tell: each by an error class of its own
        return None


def _gpus() -> list[dict[str, float]]:
    if (found := _nvml()) is not None:
        return found
    if shutil.which(_QUERY[0]) is None:
        return []
    try:
        said = subprocess.run(_QUERY, capture_output=True, text=True, timeout=5).stdout
        rows = [[float(cell) for cell in line.split(",")] for line in said.splitlines()]
        return [{"busy": busy / 100, "memory_mb": memory} for busy, memory in rows]
    except (subprocess.TimeoutExpired, ValueError):  # "[N/A]"
        return []
