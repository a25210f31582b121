"""The training loop that sft, train_reward and train_preference share.

    fit(model, examples, task, job) -> Outcome

A task says what a micro-batch's losses are; the loop owns order, micro-batches, normalisation over the global batch,
clipping, schedule, metrics, checkpoints and resume. Killed at any point and started again, it gives the same bytes.
Several processes run it side by side on the same batches; the first one reports and writes.
"""

import hashlib
import math
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from pipeline.errors import UserError, first
from pipeline.lm import forward
from pipeline.lm.examples import Example, ids_of
from pipeline.lm.forward import device_of
from pipeline.stage import Reporter, derive_seed
from pipeline.training import average, checkpoint, gradients, optim, throughput
from pipeline.training.checkpoint import Loaded
from pipeline.training.gradients import ALONE, World
from pipeline.training.settings import TrainerSettings, TrainRuntime, total_steps

WEIGHTS = ("every weight needs its gradient and two moments beside it; set the stage's trainer.adapter.kind=lora, or "
           "spread them with hardware.training.strategy=fsdp2 over more hardware.training.processes")
WRITING = ("every tensor is made whole, 4 bytes a weight and 8 more for the moments (with fsdp2 on the device first; a "
           "checkpoint of several processes: each one's share, on the CPU); free memory and run the same command, "
           "which goes on from the last checkpoint where there is one, or train anew with the stage's "
           "trainer.adapter.kind=lora")


_TIMES = 1000.0  # the first step's norm, and the norm that gradients are clipped to
_IN_A_ROW = 5
_NORMS = "norms"  # beside what the objective carries in a checkpoint


@dataclass(frozen=True)
class Job:
    """Where and how to train."""

    settings: TrainerSettings
    runtime: TrainRuntime
    seed: int
    checkpoints: Path
    report: Reporter
    optimizer: Path | None = None  # state to go on from: moments and schedule run through
    world: World = ALONE
    ema: float | None = None  # decay of averaged weights; null: none are kept


@dataclass(frozen=True)
class Outcome:
    """What is left when training ends."""

    optimizer: torch.optim.Optimizer
    steps: int
    updates: int  # of the optimizer, earlier stages included
    averages: dict[str, Tensor]  # parameter name -> averaged weights, as they lie; empty without Job.ema


@dataclass
class Norms:
    """Gradient norms that explode and stay finite. Clipping makes small steps of them, in directions that mean nothing.

    Carried in the stage's checkpoints, so that a kill changes nothing.
    """

    first: float = 0.0  # of the first step that had a gradient
    high: int = 0  # steps in a row, up to the last one, that were far over it

    def explode(self, norm: float, limit: float | None) -> bool:
        """Whether they do, with this step's. One step far above says nothing: a rare batch, a spike that passes.

        norm: finite. limit: what it is clipped to; None: off.
        """
        self.first = self.first or norm
        self.high = self.high + 1 if norm > _TIMES * max(self.first, limit or 1.0) else 0
        return self.high >= _IN_A_ROW


@dataclass
class _Window:
    """Metrics since the last report."""

    shape: throughput.Shape
    peak: float  # FLOP/s of all devices
    since: float = field(default_factory=time.perf_counter)
    tokens: int = 0
    flops: float = 0.0
    steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, values: dict[str, float], batch: Sequence[Example]) -> None:
        self.tokens, self.steps = self.tokens + throughput.data_tokens(batch), self.steps + 1
        self.flops += throughput.flops(self.shape, batch)
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self, left: int) -> dict[str, float]:
        """Mean metrics per step, rates, and the seconds that `left` more steps will take."""
        seconds = max(1e-9, time.perf_counter() - self.since)
        means = {name: value / self.steps for name, value in self.sums.items()}
        return {**means, "tokens_per_second": self.tokens / seconds, "seconds_per_step": seconds / self.steps,
                "flop_utilisation": self.flops / seconds / self.peak, "eta_seconds": left * seconds / self.steps,
                "peak_memory_gb": throughput.peak_memory_gb()}


def fit(model: Any, examples: Sequence[Example], task: gradients.Task, job: Job) -> Outcome:
    """Train `model` in place.

    Raises UserError on a loss or gradient that is not finite, on norms that explode, and on too little memory.
    """
    settings, runtime, world = job.settings, job.runtime, job.world
    optimizer = optim.adamw(model, settings)
    steps = total_steps(settings, len(examples))
    with forward.enough_memory("while loading the optimizer's state", WEIGHTS):
        at = _start(model, optimizer, task, job)
    averages = {} if job.ema is None else average.begin(model, at.extra)
    seen = Norms(*at.extra[_NORMS].tolist()) if _NORMS in at.extra else Norms()
    first, reported = at.updates - at.step, job.report.reported() if at.step else 0
    last = settings.schedule_steps or first + steps
    peak = throughput.peak_flops(device_of(model), settings.precision, runtime.peak_tflops) * world.size
    window, writing = _Window(throughput.shape_of(model), peak), checkpoint.Writing()
    ids, learned = ids_of(examples), list(optim.trained(model).values())
    job.report.progress(at.step, steps, "steps")
    with checkpoint.told_to_stop() as told, writing.ended():
        for step, chosen in enumerate(global_batches(ids, job.seed, settings.batch_size, at.step, steps), at.step):
            lr = settings.lr * lr_factor(settings, first + step, last)
            batch, values = _step(model, optimizer, learned, task, [examples[i] for i in chosen], step, lr, job, seen)
            window.add(values, batch)
            if job.ema is not None:
                average.follow(averages, model, job.ema)
            now = step + 1
            if now % runtime.log_every == 0 or now == steps:
                if now > reported:  # a step made again after a crash has been reported, with the same numbers
                    job.report.metric(now, **window.means(steps - now), lr=lr)
                window = _Window(window.shape, peak)
            job.report.progress(now, steps, "steps")
            writing.check()
            stop, late = world.agree((bool(told), writing.due(runtime.checkpoint_every_seconds)))
            if now < steps and (stop or late or _every(runtime, now)):
                norms = torch.tensor([seen.first, seen.high], dtype=torch.float64)
                state = Loaded(now, first + now, {**task.state, **average.marked(averages), _NORMS: norms})
                with forward.enough_memory(f"in the checkpoint of step {now}", WRITING):
                    checkpoint.save(job.checkpoints, model, optimizer, state, runtime.keep_checkpoints, world, writing)
                if stop:
                    writing.end()
                    raise SystemExit(128 + signal.SIGTERM)
    world.settle()
    return Outcome(optimizer, steps, first + steps, averages)


def epoch_order(ids: Sequence[str], seed: int, epoch: int) -> np.ndarray:
    """(n,) int64, a permutation of range(n): each id is placed by its own hash, derive_seed(seed, "order", epoch, id).

    A second for a million ids: what all hashes begin with is hashed once.
    """
    begun = hashlib.sha256(f"{seed}\x1forder\x1f{epoch}\x1f".encode())

    def digest(name: str) -> bytes:
        one = begun.copy()
        one.update(name.encode())
        return one.digest()[:8]

    keys = np.frombuffer(b"".join(map(digest, ids)), ">u8") >> np.uint64(1)
    return np.argsort(keys, kind="stable")


def global_batches(ids: Sequence[str], seed: int, size: int, start: int, stop: int) -> Iterator[list[int]]:
    """Indices of the global batches of steps start .. stop - 1, cut from the endless stream of epochs."""
    epoch, order = -1, np.zeros(0, np.int64)
    for step in range(start, stop):
        batch = []
        for position in range(step * size, (step + 1) * size):
            if position // len(ids) != epoch:
                epoch = position // len(ids)
                order = epoch_order(ids, seed, epoch)
            batch.append(int(order[position % len(ids)]))
        yield batch


def lr_factor(settings: TrainerSettings, step: int, last: int) -> float:
    """Learning rate over `settings.lr` at 0-based `step` of a schedule of `last` steps, in (0, 1]."""
    warmup = settings.warmup_steps if settings.warmup_steps >= 1 else math.ceil(settings.warmup_steps * last)
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "constant":
        return 1.0
    span = max(1, last - warmup)
    left = min(1.0, max(0.0, (last - step) / span))
    if settings.schedule == "cosine":
        left = 0.5 * (1.0 - math.cos(math.pi * left))
    return settings.min_lr_ratio + (1.0 - settings.min_lr_ratio) * left


def _start(model: Any, optimizer: torch.optim.Optimizer, task: gradients.Task, job: Job) -> Loaded:
    """Where to begin: at the newest checkpoint, behind an earlier stage's last update, or at nothing."""
    found = checkpoint.newest(job.checkpoints, job.world)
    if found is not None:
        at = checkpoint.load(found, model, optimizer)
        own = {name: value for name, value in average.unmarked(at.extra).items() if name != _NORMS}
        task.state.update({name: value.to(device_of(model)) for name, value in own.items()})
        return at
    return Loaded(0, optim.load_folder(job.optimizer, model, optimizer) if job.optimizer is not None else 0, {})


def _every(runtime: TrainRuntime, done: int) -> bool:
    return runtime.checkpoint_every_steps is not None and done % runtime.checkpoint_every_steps == 0


def _step(
    model: Any, optimizer: torch.optim.Optimizer, learned: Sequence[Tensor], task: gradients.Task, batch: list[Example],
    step: int, lr: float, job: Job, seen: Norms,
) -> tuple[list[Example], dict[str, float]]:
    """One optimizer step. Returns the batch trained on and its mean metrics."""
    torch.manual_seed(derive_seed(job.seed, "step", step))  # whatever a model draws is fixed by the step
    with forward.enough_memory(f"in step {step + 1}", forward.smaller_pass(job.runtime, gradient=True)):
        batch, values, bad = gradients.accumulate(
            model, task, batch, step, job.settings.precision, job.runtime.tokens_per_batch, job.world)
        norm = _clip(learned, job.settings.grad_clip)
    if bad or not math.isfinite(norm):
        raise UserError(_not_finite(step, bad or [e.id for e in batch], values["loss"], norm, lr, job))
    if seen.explode(norm, job.settings.grad_clip):
        raise UserError(f"{_stopped(step, values['loss'], norm, lr)}; the norms of the last {_IN_A_ROW} steps are "
                        f"over {_TIMES:,.0f} times that of the first ({seen.first:.3g}) and what they are clipped "
                        f"to; {_last_good(job)}; lower the stage's trainer.lr, or raise its trainer.grad_clip if "
                        "such norms are meant")
    for group in optimizer.param_groups:
        group["lr"] = lr
    with forward.enough_memory(f"in the optimizer at step {step + 1}", WEIGHTS):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return batch, {**values, "grad_norm": norm}


def _clip(learned: Sequence[Tensor], limit: float | None) -> float:
    """Clip the gradient to a global norm of `limit`, over all processes' shards. Returns the norm it had."""
    norm = torch.nn.utils.clip_grad_norm_(learned, math.inf if limit is None else limit, foreach=False)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _not_finite(step: int, ids: list[str], loss: float, norm: float, lr: float, job: Job) -> str:
    names = ", ".join(first([repr(i) for i in ids], 8))
    return (f"{_stopped(step, loss, norm, lr)}; groups {names}; {_last_good(job)}; lower the stage's trainer.lr, set "
            "precision=float32, or look at these groups")


def _stopped(step: int, loss: float, norm: float, lr: float) -> str:
    return f"training stopped at step {step + 1}: loss {loss}, gradient norm {norm}, learning rate {lr:.3g}"


def _last_good(job: Job) -> str:
    kept = checkpoint.newest(job.checkpoints)
    return f"the last good checkpoint is {kept}" if kept else "there is no checkpoint yet"
