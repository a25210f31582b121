"""What a plan will cost, before anything runs: sampled tokens, floating-point operations, disk, time.

Upper bounds from the settings (every sample as long as max_tokens allows), and times measured by earlier runs of the
same stage in this workspace. What cannot be known yet is said to be unknown.
"""

from __future__ import annotations

import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import screen
from pipeline import store, weights
from pipeline.plan import Planned
from pipeline.stage import Cost, load

_FLOAT = 4  # bytes: master weights and optimizer state are float32
_TOKEN_BYTES = 12  # of one sampled token in a table: id, text, compressed


@dataclass(frozen=True)
class Estimate:
    """Costs of the steps still to run."""

    steps: int
    parameters: float | None
    sampled_tokens: float
    flops: float
    disk: float
    seconds: float
    unmeasured: list[str]  # stages nothing in this workspace has been measured for

    def __str__(self) -> str:
        if not self.steps:
            return "nothing to run"
        size = "unknown" if self.parameters is None else f"{self.parameters / 1e6:.1f} M"
        times = f"{self.seconds / 60:.1f} minutes by earlier runs" if self.seconds else "no time measured yet"
        if self.unmeasured and self.seconds:
            times += f" (without {', '.join(self.unmeasured)}: not measured yet)"
        return (f"to run: {self.steps} steps; model {size} parameters; at most {self.sampled_tokens:,.0f} sampled "
                f"tokens, {self.flops:.1e} FLOPs of sampling and preference training, {screen.size(self.disk)} of "
                f"disk; {times}")


def estimate(config: dict[str, Any], planned: list[Planned]) -> Estimate:
    """Add up what the uncached steps may need."""
    todo = [item for item in planned if not item.cached]
    parameters = count_parameters(config["model"])
    measured = _measured(Path(config["workspace"]))
    tokens = flops = disk = seconds = 0.0
    unmeasured = []
    longest = (config["model"]["max_prompt_tokens"] or 0) + (config["model"]["max_completion_tokens"] or 0)
    for item in todo:
        cost = _cost(item)
        sampled = cost.sampled_tokens * _prompts(item, planned) if cost.sampled_tokens else 0
        tokens += sampled
        flops += (parameters or 0) * (2 * sampled + 6 * cost.trained_pairs * 2 * longest)
        disk += sampled * _TOKEN_BYTES + cost.weights * _FLOAT * (parameters or 0)
        if item.step.stage in measured:
            seconds += measured[item.step.stage]
        elif item.step.stage not in unmeasured:
            unmeasured.append(item.step.stage)
    if any(_cost(item).checkpoints for item in todo):  # the checkpoints of the one that is running
        disk += 3 * _FLOAT * (parameters or 0) * config["hardware"]["training"]["keep_checkpoints"]
    return Estimate(len(todo), parameters, tokens, flops, disk, seconds, unmeasured)


def shortage(config: dict[str, Any], workspace: Path, planned: list[Planned]) -> list[str]:
    """A problem if the plan needs more disk than there is."""
    existing = next(p for p in [workspace, *workspace.parents] if p.exists())
    free, needed = shutil.disk_usage(existing).free, estimate(config, planned).disk
    if needed <= free:
        return []
    return [f"workspace: the plan needs about {screen.size(needed)}, only {screen.size(free)} are free in {existing};"
            " free some (align gc), give another workspace=FOLDER, or fewer iterations"]


def count_parameters(model: dict[str, Any]) -> float | None:
    """Of a model described by its architecture, or by the headers of its safetensors files; None for another form."""
    if model.get("path"):
        folder = Path(model["path"]).expanduser()
        return float(weights.parameters(folder)) if all(map(Path.is_file, weights.files(folder))) else None
    arch = model.get("arch") or {}
    try:
        hidden, layers, heads = arch["hidden_size"], arch["layers"], arch["heads"]
        narrow = hidden // heads * arch["kv_heads"]
        layer = 2 * hidden * hidden + 2 * hidden * narrow + 3 * hidden * arch["intermediate_size"]
        return float(layers * layer + arch["vocab_size"] * hidden * (1 if arch["tie_embeddings"] else 2))
    except (KeyError, TypeError, ZeroDivisionError):
        return None


def _cost(item: Planned) -> Cost:
    return load(item.step.stage).cost(item.step.settings)


def _prompts(item: Planned, planned: list[Planned]) -> int:
    """Of a step that samples: what its source wrote, else what its source will; 0 where only the data tell."""
    (ref,) = item.step.inputs["prompts"]
    source = next(p for p in planned if p.step.name == ref.step)
    if source.artifact is None:
        return _cost(source).prompts
    counts = source.artifact.manifest["counts"]
    return int(counts.get(ref.part, counts.get("prompts", 0)))


def _measured(workspace: Path) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for artifact in store.artifacts(workspace):
        found.setdefault(artifact.kind, []).append(artifact.manifest["process_seconds"])
    return {kind: statistics.median(values) for kind, values in found.items()}
