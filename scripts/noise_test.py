"""The noise test of MC-PO's kernel: is a near-copy of the preferred answer drawn as a negative, and what does it cost?

    align run recipe=mcpo run=mcpo iterations=1
    python scripts/noise_test.py --workspace workspace --run mcpo

To the candidates of every group comes a copy of the preferred completion with two random tokens swapped (Chen et al.
2025, noise test). The policy is then trained once for each reading of the kernel's weights (`reward`: beta log(pi/ref);
`logp`: beta log pi) and once with uniform draws, and the share of draws that hit the copy is printed over training,
with the margins on held-out pairs without noise. Nothing of it looks at the evaluation prompts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import runs, store, tables
from pipeline.build import load_part
from pipeline.records import Group
from pipeline.stage import Reporter, derive_seed
from pipeline.training import data, export, forward, policy
from pipeline.training.data import Example
from pipeline.training.gradients import autocast
from pipeline.training.loop import Job, fit
from pipeline.training.settings import TrainerSettings, TrainRuntime

KERNELS = {
    "uniform": {"module": "pipeline.selection.uniform", "m": 1},
    "reward": {"module": "pipeline.selection.mc", "m": 1, "weights": "reward"},
    "logp": {"module": "pipeline.selection.mc", "m": 1, "weights": "logp"},
}


def swapped(ids: np.ndarray, seed: int) -> np.ndarray:
    """The completion with two random tokens (the stop id left alone) changing places; they differ where any do."""
    rng = np.random.default_rng(seed)
    body = ids[:-1]
    for _ in range(20):
        i, j = rng.integers(len(body), size=2)
        if body[i] != body[j]:
            made = ids.copy()
            made[i], made[j] = ids[j], ids[i]
            return made
    return ids.copy()


class Counting:
    """A policy task that counts, step by step, how often the noisy copy (the last candidate) is drawn."""

    def __init__(self, task: policy.PolicyTask) -> None:
        self.task, self.hits = task, list[float]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def prepare(self, model: Any, batch: list[Example], step: int) -> tuple[list[Example], dict[str, torch.Tensor]]:
        drawn, metrics = self.task.prepare(model, batch, step)
        self.hits.append(float(np.mean([d.completions[1] is e.completions[-1]
                                        for d, e in zip(drawn, batch, strict=True)])))
        return drawn, metrics


def with_references(model: Any, examples: list[Example]) -> list[Example]:
    """Reference log-probs of every completion under `model`."""
    found = []
    with torch.no_grad(), autocast(torch.device("cpu"), "bfloat16"):
        for e in examples:
            row = forward.group_logps(model, forward.collate([e]), 2**27)[0]
            found.append(dataclasses.replace(e, ref_logps=tuple(row.tolist())))
    return found


def examples_of(groups: list[Group], noise: bool, seed: int) -> list[Example]:
    made = []
    for group in groups:
        one = data.example(dataclasses.replace(group, completions=tuple(
            dataclasses.replace(c, ref_logp=None) for c in group.completions)))
        copy = (swapped(one.completions[0], derive_seed(seed, "noise", group.id)),) if noise else ()
        made.append(dataclasses.replace(one, completions=one.completions + copy))
    return made


def train(kernel: str, sft: Path, groups: list[Group], held: list[Group], args: argparse.Namespace, seed: int
          ) -> dict[str, Any]:
    runtime = TrainRuntime(device="cpu", tokens_per_batch=2048, attention="eager", checkpoint_every_seconds=None)
    reference = export.load_policy(sft, torch.device("cpu"), runtime)
    noisy = with_references(reference, examples_of(groups, True, seed))
    clean = with_references(reference, examples_of(held, False, seed))
    model = export.load_policy(sft, torch.device("cpu"), runtime)
    spec = {**KERNELS[kernel], **({"beta": args.beta} if "weights" in KERNELS[kernel] else {})}
    task = Counting(policy.PolicyTask(
        load_part({"module": "pipeline.objectives.rnce", "beta": args.beta}, "objective"),
        load_part(spec, "negatives"), seed, runtime.tokens_per_batch, runtime.logits_per_chunk))
    with tempfile.TemporaryDirectory() as folder:
        fit(model, noisy, task, Job(TrainerSettings(lr=args.lr, batch_size=32, epochs=args.epochs), runtime, seed,
                                    Path(folder), Reporter()))
    with torch.no_grad(), autocast(torch.device("cpu"), "bfloat16"):
        margins = [_margins(model, e) for e in clean]
    third = max(1, len(task.hits) // 3)
    return {"kernel": kernel, "seed": seed, "steps": len(task.hits),
            "noise_drawn_first": float(np.mean(task.hits[:third])),
            "noise_drawn_last": float(np.mean(task.hits[-third:])),
            "held_out_accuracy": float(np.mean([m[0] for m in margins])),
            "held_out_chosen_log_ratio": float(np.mean([m[1] for m in margins]))}


def _margins(model: Any, e: Example) -> tuple[float, float]:
    ratio = forward.group_logps(model, forward.collate([e]), 2**27)[0].numpy() - np.asarray(e.ref_logps)
    return float(np.mean(ratio[0] > ratio[1:])), float(ratio[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workspace", type=Path, default=Path("workspace"))
    parser.add_argument("--run", default="mcpo")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    steps = {s["name"]: s for s in runs.load(args.workspace, args.run).steps}

    def artifact(step: str) -> Path:
        found = store.find(args.workspace, steps[step]["stage"], steps[step]["key"])
        assert found is not None, f"{step} of {args.run} is not done"
        return found.path

    groups = list(tables.read(artifact("pairs[1]") / "groups"))
    held, rest = groups[::8], [g for i, g in enumerate(groups) if i % 8]
    for seed in args.seeds:
        for kernel in KERNELS:
            print(json.dumps(train(kernel, artifact("sft") / "model", rest, held, args, seed)), flush=True)


if __name__ == "__main__":
    main()
