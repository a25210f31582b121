"""Several processes that train one model: how they meet, and how its weights are spread over them."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pipeline.errors import UserError
from pipeline.lm.forward import device_of
from pipeline.training.gradients import World
from pipeline.training.settings import TrainRuntime

T = TypeVar("T")
# Layers are gathered in bfloat16, half the bytes, and none outlives its pass. Autocast, which stays on for what a loss
# computes, would keep a copy of every layer that was gathered in float32 until the backward pass.
BF16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
LAUNCHED = "TORCHELASTIC_RUN_ID"  # torchrun sets it in every process it starts


def join(runtime: TrainRuntime, device: torch.device) -> tuple[World, torch.device]:
    """Meet the other processes. Returns this one's place and its device."""
    if runtime.world_size == 1:
        return World(), device
    if LAUNCHED not in os.environ:
        raise UserError(f"runtime.processes: {runtime.world_size} processes have to be started together, by "
                        "`python -m pipeline.worker step.json` or torchrun; expected 1 in a process on its own")
    state = PartialState(cpu=device.type == "cpu")
    return World(state.process_index, state.num_processes), state.device


def first_then_all(world: World, make: Callable[[], T]) -> T:
    """What `make` gives in this process. The first one goes ahead, so that what it leaves on disk is there for all."""
    made = make() if world.first else None
    world.wait()
    return make() if made is None else made


def spread(world: World, model: Any, runtime: TrainRuntime, precision: str) -> World:
    """Shard the weights of `model` over the processes, layer by layer (FSDP2), where the strategy says so."""
    if world.size == 1 or runtime.strategy != "fsdp2":
        return world
    device = device_of(model)
    low = device.type == "cuda" and precision == "bfloat16"
    shell = shard(model, init_device_mesh(device.type, (world.size,)), BF16 if low else MixedPrecisionPolicy())
    return replace(world, shell=shell, low=low)


def shard(model: Any, mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> Any:
    """The shell of `model`, its weights sharded over `mesh`.

    By torch's own `fully_shard`: accelerate shards on accelerators only, and what runs there is to be tested here.
    """
    shell = ForwardShell(model)
    for module in (*layers_of(model), shell):  # embeddings, head and whatever else is left go with the shell
        fully_shard(module, mesh=mesh, mp_policy=policy)
        module.set_gradient_divide_factor(1.0)  # the loss is normalised over the global batch: sums, not means
        module.set_force_sum_reduction_for_comms(True)
    return shell


def layers_of(model: Any) -> list[Any]:
    """The transformer layers of a Hugging Face model. Raises UserError where it does not name them."""
    names = set(model._no_split_modules or ())
    found = [m for m in model.modules() if type(m).__name__ in names]
    if not found:
        raise UserError(f"model: {type(model).__name__} does not say what its layers are, so it can be neither sharded "
                        "nor compiled; set runtime.strategy=ddp and runtime.compile=false")
    return found


class ForwardShell(torch.nn.Module):
    """A model whose forward pass is whatever is done with it: sharded weights are whole only inside a forward pass.

    `shell(function, *arguments)` is `function(model, *arguments)`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.model, *arguments)


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor as `parameter` is: on its device, sharded as it is. One that lies so is as it was."""
    if isinstance(tensor, DTensor):
        return tensor
    moved = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return moved
    return distribute_tensor(moved, parameter.device_mesh, parameter.placements, src_data_rank=None)
