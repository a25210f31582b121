"""Several processes on one global batch: who does what, and how what they found is put together.

Every process knows the whole global batch and cuts it into the same micro-batches, which are dealt out in turn. So
what is normalised or compared over the batch needs no exchange, the loss is the one of a single process up to the order
of its sums, and every process makes the same number of passes, which sharded weights need.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pipeline.errors import UserError
from pipeline.lm import batches
from pipeline.lm.examples import Example
from pipeline.lm.forward import device_of
from pipeline.training.settings import TrainRuntime

Found = TypeVar("Found")
LAUNCHED = "TORCHELASTIC_RUN_ID"  # torchrun sets it in every process it starts


@dataclass(frozen=True)
class World:
    """This process among those that train one model."""

    rank: int = 0
    size: int = 1
    shell: Any = None  # of a model whose weights, gradients and moments are spread over the processes

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def cut(
        self, batch: Sequence[Example], tokens: int, costs: Sequence[int] | None = None
    ) -> list[tuple[list[int], bool]]:
        """This process's micro-batches of a global batch, see `batching.micro_batches`, and whether each counts.

        As many on every process: a process without one left repeats the last, which then counts nothing.
        """
        cut = batches.micro_batches(batch, tokens, costs)
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

    def agree(self, value: bool) -> bool:
        """What the first process says: for decisions by the clock."""
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


def _evenly(batch: Sequence[Example], tokens: int, number: int, costs: Sequence[int] | None) -> list[list[int]]:
    """At most `number` micro-batches, as equal in size as a token budget makes them."""
    low, high = 1, tokens
    while low < high:
        budget = (low + high) // 2
        if len(batches.micro_batches(batch, budget, costs)) <= number:
            high = budget
        else:
            low = budget + 1
    return batches.micro_batches(batch, low, costs)


def join(runtime: TrainRuntime, device: torch.device) -> tuple[World, torch.device]:
    """Meet the other processes. Returns this one's place and its device."""
    if runtime.world_size == 1:
        return World(), device
    if LAUNCHED not in os.environ:
        raise UserError(f"runtime.processes: {runtime.world_size} processes have to be started together, by "
                        "`python -m pipeline.worker step.json` or torchrun; expected 1 in a process on its own")
    state = PartialState(cpu=device.type == "cpu")
    return World(state.process_index, state.num_processes), state.device


def first_then_all(world: World, make: Callable[[], Found]) -> Found:
    """What `make` gives in this process. The first one goes ahead, so that what it leaves on disk is there for all."""
    made = make() if world.first else None
    world.wait()
    return make() if made is None else made


def spread(world: World, model: Any, runtime: TrainRuntime) -> World:
    """Shard the weights of `model` over the processes, layer by layer (FSDP2), where the strategy says so.

    By torch's own `fully_shard`: accelerate shards on accelerators only, and what runs there is to be tested here.
    """
    if world.size == 1 or runtime.strategy != "fsdp2":
        return world
    mesh, shell = init_device_mesh(device_of(model).type, (world.size,)), Shell(model)
    for module in (*layers_of(model), shell):  # embeddings, head and whatever else is left go with the shell
        fully_shard(module, mesh=mesh)
        module.set_gradient_divide_factor(1.0)  # the loss is normalised over the global batch: sums, not means
        module.set_force_sum_reduction_for_comms(True)
    return replace(world, shell=shell)


def layers_of(model: Any) -> list[Any]:
    """The transformer layers of a Hugging Face model. Raises UserError where it does not name them."""
    names = set(model._no_split_modules or ())
    found = [m for m in model.modules() if type(m).__name__ in names]
    if not found:
        raise UserError(f"model: {type(model).__name__} does not say what its layers are, so it can be neither sharded "
                        "nor compiled; set runtime.strategy=ddp and runtime.compile=false")
    return found


class Shell(torch.nn.Module):
    """A model whose forward pass is whatever is done with it: sharded weights are whole only inside a forward pass.

    `shell(function, *arguments)` is `function(model, *arguments)`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.model, *arguments)


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor as `parameter` is: on its device, sharded as it is."""
    moved = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return moved
    return distribute_tensor(moved, parameter.device_mesh, parameter.placements, src_data_rank=None)
