"""The noise test of MC-PO's kernel: is a near-copy of the preferred answer drawn as a negative, and what does it cost?

    make demo
    python scripts/noise_test.py --run demo

The samples that iteration 2 of a run scored are the groups: the best one is preferred, the others are candidates, and
to them comes a copy of the preferred one with two random tokens swapped (Chen et al. 2025, noise test). The policy that
wrote them is trained once for each reading of the kernel's weights (`reward`: beta log(pi/ref), `logp`: beta log pi)
and once with uniform draws. Printed, a line of JSON each: the share of draws that hit the copy in the first and the
last third of the steps, and on held-out groups without noise how often the preferred one has the largest log-ratio and
what that log-ratio is. No evaluation prompt is read.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline import columns, runs, store
from pipeline.config import load_part
from pipeline.lm import arrays, folders, prefix
from pipeline.lm import examples as data
from pipeline.lm.examples import Example
from pipeline.negatives.contract import Draw
from pipeline.objectives.contract import Objective
from pipeline.records import Group
from pipeline.selection import best_rest
from pipeline.stage import Reporter, derive_seed
from pipeline.training import policy
from pipeline.training.loop import Job, fit
from pipeline.training.settings import TrainerSettings, TrainRuntime
from scripts.training_sides import with_reference

HELD_OUT = 8  # every eighth group
PRECISION = "float32"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workspace", type=Path, default=Path("workspace"))
    parser.add_argument("--run", default="demo")
    parser.add_argument("--sampled", default="generate[2]", help="the step whose samples are the groups")
    parser.add_argument("--scored", default="score[2]", help="the step that scored them")
    parser.add_argument("--policy", default="train[1]", help="the step whose model wrote them")
    parser.add_argument("--score", default="reward", help="which of their scores says what is best")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    steps = {step["name"]: step for step in runs.load(options.workspace, options.run).steps}

    def artifact(name: str) -> store.Artifact:
        found = store.find(options.workspace, steps[name]["stage"], steps[name]["key"]) if name in steps else None
        if found is None:
            raise SystemExit(f"run {options.run} has no finished step {name}; it has {', '.join(steps)}")
        return found

    sampled, model = artifact(options.sampled), artifact(options.policy).path / "model"
    source = columns.Source(sampled.path / "groups", sampled.digest("groups"))
    groups = list(columns.with_scores(source, [artifact(options.scored).path / "scores"]))
    for seed in options.seeds:
        for kernel in ("uniform", "reward", "logp"):
            print(json.dumps(tried(kernel, model, groups, seed, options)), flush=True)
    return 0


def tried(kernel: str, folder: Path, groups: Sequence[Group], seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train with one kernel; what was drawn and what became of the held-out groups."""
    runtime = TrainRuntime(device="cpu", checkpoint_every_seconds=None)
    torch.manual_seed(seed)
    model = folders.load_policy(folder, torch.device("cpu"), runtime)
    prefix.prepare(model)
    ranked = [r for r in (best_first(group, options.score) for group in groups) if r is not None]
    noisy = with_reference(model, [with_copy(e, seed) for i, e in enumerate(ranked) if i % HELD_OUT], PRECISION)
    clean = with_reference(model, [e for i, e in enumerate(ranked) if i % HELD_OUT == 0], PRECISION)
    part = {"module": "pipeline.negatives.uniform", "m": 1} if kernel == "uniform" else {
        "module": "pipeline.negatives.mc", "m": 1, "weights": kernel, "beta": options.beta}
    task = Counting(policy.PolicyTask(
        load_part({"module": "pipeline.objectives.rnce", "beta": options.beta}, "objective", Objective),
        load_part(part, "negatives", Draw), seed, runtime.tokens_per_batch, runtime.logits_per_chunk))
    settings = TrainerSettings(lr=options.lr, batch_size=32, epochs=options.epochs, precision=PRECISION)
    with tempfile.TemporaryDirectory() as checkpoints:
        fit(model, noisy, task, Job(settings, runtime, seed, Path(checkpoints), Reporter()))
    ratios = [np.subtract(after.ref_logps, before.ref_logps)
              for after, before in zip(with_reference(model, clean, PRECISION), clean, strict=True)]
    hits, third = [np.mean(task.hits[step]) for step in sorted(task.hits)], max(1, len(task.hits) // 3)
    return {"kernel": kernel, "seed": seed, "groups": len(noisy), "steps": len(hits),
            "chance": float(np.mean([1 / (len(e.completions) - 1) for e in noisy])),
            "copy_drawn_first_third": float(np.mean(hits[:third])),
            "copy_drawn_last_third": float(np.mean(hits[-third:])),
            "held_out_groups": len(clean),
            "held_out_preferred_first": float(np.mean([r[0] > r[1:].max() for r in ratios])),
            "held_out_preferred_log_ratio": float(np.mean([r[0] for r in ratios]))}


class Counting:
    """A policy task that counts, step by step, the groups in which the copy (the last candidate) is drawn."""

    def __init__(self, task: policy.PolicyTask) -> None:
        self.task, self.hits = task, dict[int, list[bool]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def losses(self, model: Any, examples: Sequence[Example], step: int, about: Any) -> Any:
        losses, metrics, drawn = self.task.losses(model, examples, step, about)
        self.hits.setdefault(step, []).extend(
            d.completions[1] is e.completions[-1] for d, e in zip(drawn, examples, strict=True))
        return losses, metrics, drawn


def best_first(group: Group, score: str) -> Example | None:
    """The group's distinct samples, the best one first; None where fewer than three are left."""
    distinct = tuple({c.token_ids: c for c in group.completions}.values())
    ranked, _ = best_rest.select(dataclasses.replace(group, completions=distinct), best_rest.Settings(score, 2))
    if not ranked or len(ranked[0].completions[0].token_ids) < 4:
        return None
    return data.of_chunk(arrays.of_groups(ranked[:1]))[0]


def with_copy(example: Example, seed: int) -> Example:
    """A copy of the preferred completion behind the candidates, two of its tokens (not the stop id) swapped."""
    rng = np.random.default_rng(derive_seed(seed, "noise", example.id))
    ids = example.completions[0]
    unequal = [(i, j) for i in range(len(ids) - 1) for j in range(i) if ids[i] != ids[j]]
    i, j = unequal[rng.integers(len(unequal))]
    copy = ids.copy()
    copy[i], copy[j] = ids[j], ids[i]
    return dataclasses.replace(example, completions=(*example.completions, copy))


if __name__ == "__main__":
    sys.exit(main())
