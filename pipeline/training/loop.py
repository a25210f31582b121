"""The training loop that sft, train_reward and train_preference share.

    fit(model, examples, task, job) -> Outcome

A task says what a micro-batch's losses are; the loop owns order, micro-batches, normalisation over the global batch,
clipping, schedule, metrics, checkpoints and resume. Killed at any point and started again, it gives the same bytes.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.records import UserError
from pipeline.stage import Reporter, derive_seed
from pipeline.training import batching, checkpoint, gradients, optim
from pipeline.training.data import Example
from pipeline.training.settings import TrainerSettings, TrainRuntime, lr_factor, total_steps


@dataclass(frozen=True)
class Job:
    """Where and how to train."""

    settings: TrainerSettings
    runtime: TrainRuntime
    seed: int
    checkpoints: Path
    report: Reporter
    optimizer: Path | None = None  # state to go on from: moments and schedule run through


@dataclass(frozen=True)
class Outcome:
    """What is left when training ends."""

    optimizer: torch.optim.Optimizer
    steps: int
    updates: int  # of the optimizer, earlier stages included


@dataclass
class _Window:
    """Metrics since the last report."""

    since: float = field(default_factory=time.perf_counter)
    tokens: int = 0
    steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, values: dict[str, float], tokens: int) -> None:
        self.tokens, self.steps = self.tokens + tokens, self.steps + 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        seconds = max(1e-9, time.perf_counter() - self.since)
        means = {name: value / self.steps for name, value in self.sums.items()}
        return {**means, "tokens_per_second": self.tokens / seconds, "seconds_per_step": seconds / self.steps}


def fit(model: Any, examples: Sequence[Example], task: gradients.Task, job: Job) -> Outcome:
    """Train `model` in place. Raises UserError on a loss or gradient that is not finite, and on too little memory."""
    settings, runtime = job.settings, job.runtime
    optimizer = optim.adamw(model, settings)
    first = optim.load_folder(job.optimizer, model, optimizer) if job.optimizer is not None else 0
    steps, done = total_steps(settings, len(examples)), 0
    found = checkpoint.newest(job.checkpoints)
    if found is not None:
        done, updates = checkpoint.load(found, model, optimizer)
        assert updates == first + done
    last = settings.schedule_steps or first + steps
    window, saved = _Window(), time.monotonic()
    ids = [e.id for e in examples]
    job.report.progress(done, steps, "steps")
    for step, chosen in enumerate(batching.global_batches(ids, job.seed, settings.batch_size, done, steps), done):
        lr = settings.lr * lr_factor(settings, first + step, last)
        batch = [examples[i] for i in chosen]
        values, tokens = _step(model, optimizer, task, batch, step, lr, job)
        window.add(values, tokens)
        now = step + 1
        if now % runtime.log_every == 0 or now == steps:
            job.report.metric(now, **window.means(), lr=lr, peak_memory_gb=peak_memory_gb())
            window = _Window()
        job.report.progress(now, steps, "steps")
        if now < steps and _due(runtime, now, saved):
            checkpoint.save(job.checkpoints, model, optimizer, now, first + now, runtime.keep_checkpoints)
            saved = time.monotonic()
    return Outcome(optimizer, steps, first + steps)


def _due(runtime: TrainRuntime, done: int, saved: float) -> bool:
    by_steps = runtime.checkpoint_every_steps is not None and done % runtime.checkpoint_every_steps == 0
    seconds = runtime.checkpoint_every_seconds
    return by_steps or (seconds is not None and time.monotonic() - saved >= seconds)


def _step(
    model: Any, optimizer: torch.optim.Optimizer, task: gradients.Task, batch: list[Example], step: int, lr: float,
    job: Job,
) -> tuple[dict[str, float], int]:
    """One optimizer step. Returns its mean metrics and the number of tokens in its rows."""
    torch.manual_seed(derive_seed(job.seed, "step", step))  # whatever a model draws is fixed by the step
    try:
        batch, values, bad = gradients.accumulate(
            model, task, batch, step, job.settings.precision, job.runtime.tokens_per_batch)
    except torch.OutOfMemoryError:
        raise UserError(
            f"out of memory in step {step + 1}: lower runtime.tokens_per_batch (now {job.runtime.tokens_per_batch}) or "
            "runtime.logits_per_chunk, or set runtime.gradient_checkpointing=true; none of them changes the result"
        ) from None
    limit = job.settings.grad_clip if job.settings.grad_clip is not None else math.inf
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit, foreach=False))
    if bad or not math.isfinite(norm):
        raise UserError(_not_finite(step, bad or [e.id for e in batch], values["loss"], norm, lr, job))
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    tokens = sum(len(e.prompt) + len(c) for e in batch for c in e.completions)
    return {**values, "grad_norm": norm}, tokens


def peak_memory_gb() -> float:
    """Peak memory of the device, or of this process where the device is the CPU."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _not_finite(step: int, ids: list[str], loss: float, norm: float, lr: float, job: Job) -> str:
    kept = checkpoint.newest(job.checkpoints)
    names = ", ".join(repr(i) for i in ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    where = f"the last good checkpoint is {kept}" if kept else "there is no checkpoint yet"
    return (f"training stopped at step {step + 1}: loss {loss}, gradient norm {norm}, learning rate {lr:.3g}; groups "
            f"{names}; {where}; lower trainer.lr, set trainer.precision=float32, or look at these groups")
