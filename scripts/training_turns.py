"""Sides of a comparison: processes of scripts/training_sides.py that make one step each in turn, and what is shown.

Other loads on a machine move absolute figures by up to 2x, so compared sides run under the same conditions and ratios
are taken over the same rounds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SEED = 5


@dataclass(frozen=True)
class World:
    """One call: where its files are, how much is measured."""

    folder: Path
    rounds: int
    trl: bool
    precisions: tuple[str, ...]
    threads: int
    quick: bool


class Side:
    """A process of scripts/training_sides.py that makes steps in turn with others."""

    def __init__(self, world: World, name: str, **spec: Any) -> None:
        self.name, self.peak_gb = name, 0.0
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.losses: list[float] = []
        self.tokens: list[int] = []
        work = world.folder / f"side-{len(list(world.folder.glob('side-*')))}"
        work.mkdir()
        full = {"model": str(world.folder / "model"), "work": str(work), "seed": SEED, "batch": 8, "negatives": None,
                "tokens_per_batch": 2048, "share_prefix": True, "reference": True, **spec}
        (work / "spec.json").write_text(json.dumps(full))
        environment = {**os.environ, "OMP_NUM_THREADS": str(world.threads), "HF_HUB_OFFLINE": "1",
                       "TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_CACHE": str(work / "cache")}
        self.log = (work / "log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "training_sides.py"), str(work / "spec.json")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment)

    def ready(self) -> None:
        self._take(self.answer())

    def step(self, number: int = 1) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        return self._take(self.answer())

    def answer(self) -> dict[str, Any]:
        """The next line of the process. Ends the bench, with the side's log, where there is none."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise SystemExit(f"{self.name} failed:\n{self.log.read()[-4000:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def _take(self, found: dict[str, Any]) -> dict[str, Any]:
        self.seconds += found["seconds"]
        self.cpu_seconds += found["cpu_seconds"]
        self.losses += found["losses"]
        self.tokens += found["tokens"]
        self.peak_gb = found["peak_gb"]
        return found

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.log.close()

    @property
    def median(self) -> float:
        """Seconds of a step; the first one, which fills caches, is left out."""
        return statistics.median(self.seconds[1:])

    @property
    def cpu(self) -> float:
        """Processor seconds of a step: with one thread what other loads on the machine hardly move."""
        return statistics.median(self.cpu_seconds[1:])


def alternate(world: World, sides: list[Side]) -> None:
    """One step each in turn, `rounds` times behind the first."""
    for side in sides:
        side.ready()
    for turn in range(world.rounds + 1):
        for side in sides if turn % 2 == 0 else sides[::-1]:
            side.step()
    for side in sides:
        side.close()


def row(side: Side, base: Side, more: str = "") -> dict[str, Any]:
    """One line of the table, and its numbers; ratios are how much faster than `base`."""
    rate = statistics.median(t / s for t, s in zip(side.tokens[1:], side.seconds[1:], strict=True))
    print(f"  {side.name:38s} {side.median:8.3f} s {base.median / side.median:6.2f}x   {side.cpu:8.3f} cpu s "
          f"{base.cpu / side.cpu:6.2f}x {rate:8.0f} tokens/s {side.peak_gb:5.2f} GB {more}", flush=True)
    return {"seconds": side.median, "speed_ratio": base.median / side.median, "cpu_seconds": side.cpu,
            "cpu_ratio": base.cpu / side.cpu, "tokens_per_second": rate, "peak_gb": side.peak_gb, "losses": side.losses}


def judged(name: str, value: float, least: float | None = None, most: float | None = None) -> dict[str, Any]:
    """A figure beside its target, printed: at least `least` or at most `most`."""
    target = f"at least {least:g}" if least is not None else f"at most {most:g}"
    met = (least is None or value >= least) and (most is None or value <= most)
    print(f"  {name}: {value:.3g}, target {target}: {'met' if met else 'MISSED'}", flush=True)
    return {"figure": name, "value": value, "target": target, "met": met}
