"""The gradient of one global batch: micro-batches, normalisation over all of it, the losses that are not finite.

A loss that is a sum over groups is taken micro-batch by micro-batch. One that compares groups (KTO's KL point, BCO's
shift, AOT's ranks) is taken once, on the log-probs of the whole batch; its gradient with respect to them is then what
each micro-batch's log-probs are multiplied by. Either way the result does not depend on how the batch was cut.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.records import LossInputs
from pipeline.training import batching
from pipeline.training.data import Example
from pipeline.training.inputs import About, device_of, joined

Metrics = dict[str, Tensor]


class Task(Protocol):
    """What is trained: a model's losses on groups."""

    @property
    def normalise(self) -> str: ...

    @property
    def whole(self) -> bool: ...  # the loss compares groups of the global batch

    def prepare(self, model: Any, batch: list[Example], step: int) -> tuple[list[Example], Metrics]: ...

    def about(self, batch: Sequence[Example]) -> About: ...

    def losses(self, model: Any, examples: Sequence[Example], step: int, about: About) -> tuple[Tensor, Metrics]: ...


class WholeTask(Task, Protocol):
    """A task whose loss compares groups: inputs and loss are asked for separately."""

    def inputs(self, model: Any, examples: Sequence[Example], step: int, about: About) -> LossInputs: ...

    def loss(self, inputs: LossInputs) -> tuple[Tensor, Metrics]: ...

    def logps(self, model: Any, examples: Sequence[Example]) -> Tensor: ...


def accumulate(
    model: Any, task: Any, batch: list[Example], step: int, precision: str, tokens_per_batch: int
) -> tuple[list[Example], dict[str, float], list[str]]:
    """Accumulate the gradient of the global batch. Returns the batch trained on, mean metrics, ids of bad losses."""
    with autocast(device_of(model), precision):
        batch, drawn = task.prepare(model, batch, step)
    share = torch.tensor(normalised_weights(batch, task.normalise), device=device_of(model))
    about, cut = task.about(batch), batching.micro_batches(batch, tokens_per_batch)
    function = _of_whole if task.whole and len(cut) > 1 else _of_parts
    loss, bad, collected = function(model, task, batch, step, precision, about, cut, share)
    means = {name: float(torch.cat(parts).mean()) for name, parts in collected.items()}
    return batch, {"loss": loss, **means, **{name: float(v.float().mean()) for name, v in drawn.items()}}, bad


def _of_parts(
    model: Any, task: Task, batch: list[Example], step: int, precision: str, about: About, cut: list[list[int]],
    share: Tensor,
) -> tuple[float, list[str], dict[str, list[Tensor]]]:
    loss, bad, collected = 0.0, list[str](), dict[str, list[Tensor]]()
    for micro in cut:
        with autocast(device_of(model), precision):
            losses, metrics = task.losses(model, [batch[i] for i in micro], step, about)
        part = (losses * share[micro]).sum()
        part.backward()
        loss += float(part.detach())
        bad.extend(batch[i].id for i, ok in zip(micro, losses.detach().isfinite().tolist(), strict=True) if not ok)
        for name, value in metrics.items():
            collected.setdefault(name, []).append(value.detach().float())
    return loss, bad, collected


def _of_whole(
    model: Any, task: WholeTask, batch: list[Example], step: int, precision: str, about: About, cut: list[list[int]],
    share: Tensor,
) -> tuple[float, list[str], dict[str, list[Tensor]]]:
    device = device_of(model)
    with torch.no_grad(), autocast(device, precision):
        inputs = joined([task.inputs(model, [batch[i] for i in micro], step, about) for micro in cut], cut)
    logps = inputs.logps.requires_grad_()
    losses, metrics = task.loss(dataclasses.replace(inputs, logps=logps))
    loss = (losses * share).sum()
    (slopes,) = torch.autograd.grad(loss, logps)
    for micro in cut:
        with autocast(device, precision):
            live = task.logps(model, [batch[i] for i in micro])
        (live * slopes[micro, : live.shape[1]]).sum().backward()
    bad = [e.id for e, ok in zip(batch, losses.detach().isfinite().tolist(), strict=True) if not ok]
    return float(loss.detach()), bad, {name: [value.detach().float()] for name, value in metrics.items()}


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
