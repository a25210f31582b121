"""The gradient of one global batch: micro-batches, normalisation over all of it, the losses that are not finite.

A loss that is a sum over groups is taken micro-batch by micro-batch. One that compares groups (KTO's KL point, BCO's
shift, AOT's ranks) is taken once, on the log-probs of the whole batch; its gradient with respect to them is then what
each micro-batch's log-probs are multiplied by. Either way the result does not depend on how the batch was cut.

Of several processes every one knows the whole global batch and cuts it into the same micro-batches, which are dealt out
in turn. So what is normalised or compared over the batch needs no exchange, the loss is the one of a single process up
to the order of its sums, and every process makes the same number of passes, which sharded weights need.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from pipeline.lm import packed
from pipeline.lm.examples import Example, normalised_weights
from pipeline.lm.forward import autocast, device_of
from pipeline.objectives.contract import LossInputs
from pipeline.training.inputs import joined, moved, partners

T = TypeVar("T")

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class World:
    """This process among those that train one model."""

    rank: int = 0
    size: int = 1
    shell: Any = None  # of a model whose weights, gradients and moments are spread over the processes
    low: bool = False  # its weights are gathered in bfloat16

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def cut(self, batch: Sequence[Example], tokens: int,
            costs: Sequence[int] | None = None) -> list[tuple[list[int], bool]]:
        """This process's micro-batches of a global batch, see `packed.micro_batches`, and whether each counts.

        As many on every process: a process without one left repeats the last, which then counts nothing.
        """
        cut = packed.micro_batches(batch, tokens, costs)
        if self.size == 1:
            return [(micro, True) for micro in cut]
        cut = _evenly(batch, tokens, -(-len(cut) // self.size) * self.size, costs)
        own = [(micro, True) for micro in cut[self.rank::self.size]]
        return own if len(own) * self.size >= len(cut) else [*own, (cut[-1], False)]

    def run(self, function: Callable[..., Any], model: Any, *arguments: Any) -> Any:
        """`function(model, *arguments)`, with the weights gathered where they are sharded."""
        return function(model, *arguments) if self.shell is None else self.shell(function, *arguments)

    def settle(self) -> None:
        """Put every weight back into its shards, so that parameters are what their names say."""
        if self.shell is not None:
            for module in self.shell.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies on the CPU, put together from their shards, in the first process; nothing in the others."""
        found = {}
        self.settle()
        for name, tensor in tensors.items():
            full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor  # all of them take part
            if self.first:
                found[name] = full.detach().cpu().contiguous()
        return found

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, by rank."""
        if self.size == 1:
            return [value]
        found = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def agree(self, value: T) -> T:
        """What the first process says: for decisions by the clock, or by a signal."""
        if self.size == 1:
            return value
        told = [value]
        distributed.broadcast_object_list(told, src=0)
        return told[0]

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            distributed.barrier()

    def reduce_gradients(self, model: Any) -> None:
        """Sum the gradients over the processes. Sharded ones are summed in the backward pass already."""
        if self.size == 1 or self.shell is not None:
            return
        for p in model.parameters():
            if p.requires_grad:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
                distributed.all_reduce(p.grad)


ALONE = World()


@dataclass(frozen=True)
class BatchFacts:
    """The global batch a micro-batch belongs to."""

    mean_chosen_length: float  # tokens of completion 0
    mean_wanted_length: float  # the same, one labelled unwanted counting as 0
    mean_length: float  # tokens of all completions
    tokens_per_group: float  # the same, weighted as the groups are
    one_prompt: bool  # every group has one prompt, and a completion beside the first
    partners: dict[str, Example]  # group id -> the group whose completions are its mismatched ones

    @classmethod
    def of(cls, batch: Sequence[Example], mismatched: bool = False) -> BatchFacts:
        """Facts of `batch`; with `mismatched` also a partner with another prompt for every group."""
        chosen = [len(e.completions[0]) for e in batch]
        wanted = sum(n for e, n in zip(batch, chosen, strict=True) if len(e.completions) > 1 or e.label is not False)
        tokens = [e.completion_tokens for e in batch]
        weighted = sum(e.weight * n for e, n in zip(batch, tokens, strict=True)) / (sum(e.weight for e in batch) or 1.0)
        one_prompt = all(e.prompts is None and len(e.completions) > 1 for e in batch)
        return cls(sum(chosen) / len(batch), wanted / len(batch), sum(tokens) / len(batch), weighted, one_prompt,
                   partners(batch) if mismatched else {})


class Task(Protocol):
    """What is trained: a model's losses on groups."""

    @property
    def normalise(self) -> str: ...

    @property
    def whole(self) -> bool: ...  # the loss compares groups of the global batch

    @property
    def state(self) -> dict[str, Tensor]: ...  # what is carried from step to step

    def prepare(self, model: Any, batch: list[Example], step: int) -> tuple[list[Example], Metrics]: ...

    def facts(self, batch: Sequence[Example]) -> BatchFacts: ...

    def cost(self, example: Example) -> int: ...  # unique tokens that a micro-batch has to hold for it

    def losses(  # of the groups, and these with the completions the losses are of
        self, model: Any, examples: Sequence[Example], step: int, facts: BatchFacts
    ) -> tuple[Tensor, Metrics, Sequence[Example]]: ...


class WholeTask(Task, Protocol):
    """A task whose loss compares groups: inputs and loss are asked for separately."""

    def inputs(self, model: Any, examples: Sequence[Example], step: int, facts: BatchFacts) -> LossInputs: ...

    def loss(self, inputs: LossInputs) -> tuple[Tensor, Metrics]: ...

    def logps(self, model: Any, examples: Sequence[Example]) -> Tensor: ...

    def rationale_logps(self, model: Any, examples: Sequence[Example]) -> Tensor: ...


@dataclass
class StepResult:
    """What the passes over a global batch gave, beside the gradient."""

    loss: float = 0.0
    bad: list[str] = field(default_factory=list)  # ids of groups whose loss is not finite
    metrics: dict[str, list[Tensor]] = field(default_factory=dict)  # (G,) float32 parts of each
    trained: list[Example] = field(default_factory=list)  # groups with the completions that were trained on
    unread: list[tuple[Tensor, Sequence[Example], Tensor]] = field(default_factory=list)  # losses on the device

    def add(self, loss: Tensor, groups: Sequence[Example], losses: Tensor, metrics: Metrics) -> None:
        """Count the (G,) losses of `groups`, which are `loss` of the global batch's; `read` them when all are there."""
        self.unread.append((loss.detach(), groups, losses.detach()))
        self.trained += groups
        for name, value in metrics.items():
            self.metrics.setdefault(name, []).append(value.detach().float())

    def read(self) -> StepResult:
        """Wait for the device, which had no reason to stop between two micro-batches."""
        for loss, groups, losses in self.unread:
            self.loss += float(loss)
            self.bad += [e.id for e, ok in zip(groups, losses.isfinite().tolist(), strict=True) if not ok]
        self.unread = []
        return self


def accumulate(model: Any, task: Any, batch: list[Example], step: int, precision: str, tokens_per_batch: int,
               world: World = ALONE) -> tuple[list[Example], dict[str, float], list[str]]:
    """Accumulate the gradient of the global batch. Returns the batch trained on, mean metrics, ids of bad losses.

    In a `world` of several processes each does its micro-batches; gradient, loss, metrics and ids are those of all.
    """
    with autocast(device_of(model), precision):
        batch, drawn = world.run(task.prepare, model, batch, step)
    share = torch.tensor(normalised_weights(batch, task.normalise), device=device_of(model))
    facts, cut = task.facts(batch), world.cut(batch, tokens_per_batch, [task.cost(e) for e in batch])
    function = _of_whole if task.whole and (len(cut) > 1 or world.size > 1) else _of_parts
    found = _of_all(function(model, task, batch, step, precision, facts, cut, share, world), world)
    world.reduce_gradients(model)
    means = {name: float(torch.cat(parts).mean()) for name, parts in found.metrics.items()}
    before = {name: float(value.float().mean()) for name, value in drawn.items()}
    return found.trained, {"loss": found.loss, **means, **before}, found.bad


def _of_parts(model: Any, task: Task, batch: list[Example], step: int, precision: str, facts: BatchFacts,
              cut: list[tuple[list[int], bool]], share: Tensor, world: World) -> StepResult:
    found = StepResult()
    for (micro, counts), part_of_all in zip(cut, _shares(share, cut), strict=True):
        examples = [batch[i] for i in micro]
        with autocast(device_of(model), precision):
            losses, metrics, trained = world.run(task.losses, model, examples, step, facts)
        part = (losses * part_of_all * counts).sum()
        part.backward()
        if counts:
            found.add(part, trained, losses, metrics)
    return found.read()


def _shares(share: Tensor, cut: list[tuple[list[int], bool]]) -> Sequence[Tensor]:
    """What each micro-batch's groups count for, by one copy to the device."""
    order = torch.tensor([i for micro, _ in cut for i in micro]).to(share.device)
    return share[order].split([len(micro) for micro, _ in cut])


def _of_whole(model: Any, task: WholeTask, batch: list[Example], step: int, precision: str, facts: BatchFacts,
              cut: list[tuple[list[int], bool]], share: Tensor, world: World) -> StepResult:
    device, found = device_of(model), StepResult()
    with torch.no_grad(), autocast(device, precision):
        parts = [(world.run(task.inputs, model, [batch[i] for i in micro], step, facts), micro)
                 for micro, counts in cut if counts or world.size > 1]
    inputs = _joined_of_all(parts, [counts for _, counts in cut], world, device)
    of_rationales = inputs.rationale_logps
    wanted = [one.requires_grad_() for one in (inputs.logps, of_rationales) if one is not None]
    losses, metrics = task.loss(inputs)
    loss = (losses * share).sum()
    slopes = torch.autograd.grad(loss, wanted)
    for micro, counts in cut:
        examples = [batch[i] for i in micro]
        with autocast(device, precision):
            live = world.run(task.logps, model, examples)
        (live * slopes[0][micro, : live.shape[1]] * counts).sum().backward()
        if of_rationales is not None:
            with autocast(device, precision):
                live = world.run(task.rationale_logps, model, examples)
            (live * slopes[1][micro] * counts).sum().backward()
    if world.first:  # every process has the loss of all
        found.add(loss, batch, losses, metrics)
    return found.read()


def _joined_of_all(parts: list[tuple[LossInputs, list[int]]], counts: list[bool], world: World,
                   device: torch.device) -> LossInputs:
    """The inputs of the global batch, from the micro-batches of every process."""
    own = parts[0][0]
    if world.size > 1:
        light = [(moved(inputs, "cpu"), micro) for (inputs, micro), ok in zip(parts, counts, strict=True) if ok]
        parts = [(moved(inputs, device), micro) for found in world.gather(light) for inputs, micro in found]
    whole = joined([inputs for inputs, _ in parts], [micro for _, micro in parts])
    return dataclasses.replace(whole, state=own.state, parameters=own.parameters)


def _of_all(own: StepResult, world: World) -> StepResult:
    """What every process found."""
    if world.size == 1:
        return own
    light = StepResult(own.loss, own.bad, {name: [torch.cat(parts).cpu()] for name, parts in own.metrics.items()},
                  own.trained)
    total = StepResult()
    for found in world.gather(light):
        total.loss, total.bad = total.loss + found.loss, total.bad + found.bad
        total.trained += found.trained
        for name, parts in found.metrics.items():
            total.metrics.setdefault(name, []).extend(parts)
    return total


def _evenly(batch: Sequence[Example], tokens: int, number: int, costs: Sequence[int] | None) -> list[list[int]]:
    """At most `number` micro-batches, as equal in size as a token budget makes them."""
    def few(budget: int) -> bool:
        return len(packed.micro_batches(batch, budget, costs)) <= number

    return packed.micro_batches(batch, 1 + bisect.bisect_left(range(1, tokens), True, key=few), costs)
