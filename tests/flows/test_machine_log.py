"""A run's machine is looked at while it goes on, and a disk that cannot be written costs nothing but the lines."""

from __future__ import annotations

import json
import sys
import time
import types
from pathlib import Path

import psutil
import pytest

from flows import machine_log


def test_lines_are_written_while_the_body_runs(tmp_path: Path):
    with machine_log.sampled(tmp_path, every=0.02):
        deadline = time.monotonic() + 10
        while not (tmp_path / machine_log.FILE).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    lines = [json.loads(line) for line in (tmp_path / machine_log.FILE).read_text().splitlines()]
    assert lines and all(0 <= line["cpu"] <= 1 for line in lines)
    assert 0 < lines[0]["own_memory_mb"] < lines[0]["memory_mb"] < psutil.virtual_memory().total / 2**20
    size = (tmp_path / machine_log.FILE).stat().st_size
    time.sleep(0.1)
    assert (tmp_path / machine_log.FILE).stat().st_size == size, "it has ended"


def test_a_folder_that_is_not_there_fails_nothing(tmp_path: Path):
    with machine_log.sampled(tmp_path / "gone", every=0.01):
        time.sleep(0.1)
    assert not (tmp_path / "gone").exists()


class NVML(types.ModuleType):
    """What this machine lacks: the driver's library with two GPUs, in the words of nvidia-ml-py. It stands for no GPU
    that was ever seen."""

    def __init__(self, tells: bool) -> None:
        super().__init__("pynvml")
        self.tells, self.open = tells, 0

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, i: int) -> int:
        return i

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> types.SimpleNamespace:
        if not self.tells:
            raise RuntimeError("Not Supported")
        return types.SimpleNamespace(gpu=40 + gpu, memory=1)

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(used=(gpu + 1) * 2**30, total=2**37)


def test_gpus_are_told_by_nvml_where_it_is_installed(monkeypatch: pytest.MonkeyPatch):
    nvml = NVML(tells=True)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    line = machine_log.state(psutil.Process())
    assert line["gpus"] == [{"busy": 0.4, "memory_mb": 1024}, {"busy": 0.41, "memory_mb": 2048}] and nvml.open == 0


def test_gpus_that_do_not_tell_cost_nothing_but_their_curve(monkeypatch: pytest.MonkeyPatch):
    """Then nvidia-smi is asked, which is not here."""
    nvml = NVML(tells=False)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setenv("PATH", "")
    assert "gpus" not in machine_log.state(psutil.Process()) and nvml.open == 0
