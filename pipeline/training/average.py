"""Weights averaged while a policy is trained: a second, calmer policy for the next iteration to start from or refer to.

    average <- decay average + (1 - decay) weights        after every step, from the weights training starts with
"""

from typing import Any

import torch
from torch import Tensor

from pipeline.training import optim
from pipeline.training.distribute import like

_MARK = "ema."  # in front of the names, beside what the objective carries in a checkpoint


def begin(model: Any, saved: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameter name -> average, as the parameter lies: the weights themselves, or what a checkpoint's extra holds."""
    return {name: like(saved[_MARK + name], p) if _MARK + name in saved else p.detach().clone()
            for name, p in optim.trained(model).items()}


@torch.no_grad()
def follow(averages: dict[str, Tensor], model: Any, decay: float) -> None:
    """Take one step towards the weights, in place. decay: in [0, 1)."""
    for name, p in optim.trained(model).items():
        averages[name].lerp_(p.detach(), 1.0 - decay)


def marked(averages: dict[str, Tensor]) -> dict[str, Tensor]:
    """As a checkpoint's extra holds them."""
    return {_MARK + name: tensor for name, tensor in averages.items()}


def unmarked(extra: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's extra without them."""
    return {name: tensor for name, tensor in extra.items() if not name.startswith(_MARK)}


@torch.no_grad()
def put(averages: dict[str, Tensor], model: Any) -> None:
    """Give the trained parameters their averages, in full precision: what was delivered before has rounded them."""
    for name, p in optim.trained(model).items():
        if p.dtype != averages[name].dtype:
            p.data = p.data.to(averages[name].dtype)
        p.copy_(averages[name])
