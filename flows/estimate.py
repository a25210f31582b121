"""What a plan will cost, before anything runs: sampled tokens, floating-point operations, disk, time.

Upper bounds from the settings (every sample as long as max_tokens allows), and times measured by earlier runs of the
same stage in this workspace. What cannot be known yet is said to be unknown.
"""

import shutil
import statistics
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import screen, trainings
from pipeline import store
from pipeline.errors import command
from pipeline.gc import size
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

    def __add__(self, other: "Estimate") -> "Estimate":
        """Of two plans that share none of these steps."""
        return Estimate(self.steps + other.steps, max(filter(None, (self.parameters, other.parameters)), default=None),
                        self.sampled_tokens + other.sampled_tokens, self.flops + other.flops, self.disk + other.disk,
                        self.seconds + other.seconds, [*dict.fromkeys(self.unmeasured + other.unmeasured)])

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


Records = list[dict[str, Any]]  # the steps of run.json


def disk_needed(config: dict[str, Any], workspace: Path, planned: list[Planned], records: Records,
                only: Set[str] | None = None) -> float:
    """Bytes that the steps still to run may write, less what their unfinished work holds already. only: of these steps.

    A step whose inputs are made again, most often to the same bytes, is still to run only where
    the artifact it had is gone, too.
    """
    had = {record["name"]: record.get("key") for record in records}
    parameters, total = count_parameters(config["model"]) or 0.0, 0.0
    checkpoints: float | None = None
    for item in planned if only is None else [item for item in planned if item.step.name in only]:
        key, stage, cost = had.get(item.step.name), item.step.stage, _cost(item)
        if item.cached or (item.key is None and key and store.find(workspace, stage, key) is not None):
            continue
        needed = _sampled(item, planned, workspace) * _TOKEN_BYTES + cost.weights * _FLOAT * parameters
        held = size(store.work_path(workspace, stage, item.key)) if item.key else 0
        total += max(0.0, needed - held)
        if cost.checkpoints and checkpoints is None:  # of the one that runs first; later ones get its room
            room = 3 * _FLOAT * parameters * config["hardware"]["training"]["keep_checkpoints"]
            checkpoints = max(0.0, room - max(0.0, held - needed))
    return total + (checkpoints or 0.0)


def step_needed(config: dict[str, Any], workspace: Path, planned: list[Planned], item: Planned,
                done: Mapping[str, store.Artifact]) -> float:
    """Bytes that a step which was cut short may still write: as its settings tell, or as many as the tables and the
    user's files it reads have, less what its unfinished work holds. done: the steps before it.
    """
    step = item.step
    tables = [ref for refs in step.inputs.values() for ref in refs if ref.part != "model" and ref.step in done]
    read = sum(file["size"] for ref in tables for name, file in done[ref.step].manifest["files"].items()
               if name.startswith(ref.part))
    given = sum(path.stat().st_size for path in step.plugin.files(step.settings, step.runtime) if path.exists())
    held = size(store.work_path(workspace, step.stage, item.key)) if item.key else 0
    return max(disk_needed(config, workspace, planned, [], {step.name}), float(read + given - held))


def estimate(config: dict[str, Any], planned: list[Planned], records: Records | None = None,
             only: Set[str] | None = None) -> Estimate:
    """Add up what the uncached steps may need; only: the names of those that count."""
    todo = [item for item in planned if not item.cached and (only is None or item.step.name in only)]
    parameters = count_parameters(config["model"])
    workspace = Path(config["workspace"])
    known = measured(workspace)
    tokens = flops = seconds = 0.0
    unmeasured = []
    longest = (config["model"]["max_prompt_tokens"] or 0) + (config["model"]["max_completion_tokens"] or 0)
    for item in todo:
        sampled = _sampled(item, planned, workspace)
        pairs = trainings.pairs(workspace, planned, item) if item.step.stage == "train_preference" else 0
        tokens += sampled
        flops += (parameters or 0) * (2 * sampled + 6 * pairs * 2 * longest)
        if item.step.stage in known:
            seconds += known[item.step.stage]
        elif item.step.stage not in unmeasured:
            unmeasured.append(item.step.stage)
    disk = disk_needed(config, workspace, planned, records or [], only)
    return Estimate(len(todo), parameters, tokens, flops, disk, seconds, unmeasured)


def shortage(config: dict[str, Any], workspace: Path, planned: list[Planned], records: Records) -> list[str]:
    """A problem if the plan needs more disk than there is."""
    existing = next(p for p in [workspace, *workspace.parents] if p.exists())
    free, needed = shutil.disk_usage(existing).free, disk_needed(config, workspace, planned, records)
    if needed <= free:
        return []
    return [f"workspace: the plan needs about {screen.size(needed)}, only {screen.size(free)} are free in {existing};"
            f" give another workspace=FOLDER, fewer iterations, or free some:{command(workspace, 'gc')}"]


def count_parameters(model: dict[str, Any]) -> float | None:
    """Of a model described by its architecture, or by the headers of its safetensors files."""
    if model.get("path"):
        return trainings.pretrained_weights(model)
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


def _sampled(item: Planned, planned: list[Planned], workspace: Path) -> float:
    """Tokens at most; 0 where the step samples nothing, or only the data tell of how many prompts."""
    each = _cost(item).sampled_tokens
    return each * (trainings.seen(workspace, planned, item.step.inputs["prompts"]).groups or 0) if each else 0.0


def measured(workspace: Path) -> dict[str, float]:
    """Stage -> seconds that one such step took, the median over every artifact there."""
    found: dict[str, list[float]] = {}
    for artifact in store.artifacts(workspace):
        found.setdefault(artifact.kind, []).append(artifact.manifest["process_seconds"])
    return {kind: statistics.median(values) for kind, values in found.items()}
