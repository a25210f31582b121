"""The gradient of one global batch: micro-batches, normalisation over all of it, the losses that are not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.training import batching
from pipeline.training.data import Example

Metrics = dict[str, Tensor]


class Task(Protocol):
    """What is trained: a model's losses on groups."""

    @property
    def normalise(self) -> str: ...

    def prepare(self, model: Any, batch: list[Example], step: int) -> tuple[list[Example], Metrics]: ...

    def losses(self, model: Any, examples: Sequence[Example], step: int) -> tuple[Tensor, Metrics]: ...


def accumulate(
    model: Any, task: Task, batch: list[Example], step: int, precision: str, tokens_per_batch: int
) -> tuple[list[Example], dict[str, float], list[str]]:
    """Accumulate the gradient of the global batch. Returns the batch trained on, mean metrics, ids of bad losses."""
    device = next(model.parameters()).device
    with autocast(device, precision):
        batch, drawn = task.prepare(model, batch, step)
    share = normalised_weights(batch, task.normalise)
    collected: dict[str, list[Tensor]] = {}
    loss, bad = 0.0, list[str]()
    for micro in batching.micro_batches(batch, tokens_per_batch):
        with autocast(device, precision):
            losses, metrics = task.losses(model, [batch[i] for i in micro], step)
        part = (losses * torch.tensor([share[i] for i in micro], device=device)).sum()
        part.backward()
        loss += float(part.detach())
        bad.extend(batch[i].id for i, ok in zip(micro, losses.detach().isfinite().tolist(), strict=True) if not ok)
        for name, value in metrics.items():
            collected.setdefault(name, []).append(value.detach().float())
    means = {name: float(torch.cat(parts).mean()) for name, parts in collected.items()}
    return batch, {"loss": loss, **means, **{name: float(v.float().mean()) for name, v in drawn.items()}}, bad


def normalised_weights(batch: Sequence[Example], normalise: str) -> list[float]:
    """What each group's loss is multiplied by, so that the sum over the global batch is its loss.

    "groups": sum of w L / sum of w. "tokens": sum of w L / sum of w n, n the group's scored completion tokens.
    """
    sizes = {"groups": [1] * len(batch), "tokens": [e.completion_tokens for e in batch]}[normalise]
    total = sum(e.weight * n for e, n in zip(batch, sizes, strict=True))
    return [e.weight / total for e in batch]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 matrix products over float32 masters, or plain float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
