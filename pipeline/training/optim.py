"""AdamW and its state on disk, as safetensors by parameter name."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline import clock
from pipeline.errors import UserError
from pipeline.training import shards
from pipeline.training.distribute import like
from pipeline.training.settings import TrainerSettings

_MOMENTS = ("exp_avg", "exp_avg_sq")
TENSORS, STATE = "optimizer.safetensors", "state.json"


def adamw(model: Any, settings: TrainerSettings) -> torch.optim.AdamW:
    """Decoupled weight decay on matrices only; biases and norm gains are left alone (Loshchilov & Hutter 2019)."""
    found = trained(model).values()
    groups = [{"params": [p for p in found if p.ndim >= 2], "weight_decay": settings.weight_decay},
              {"params": [p for p in found if p.ndim < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps,
        fused=True,  # one pass over memory instead of ten; elementwise, so as reproducible as the plain one
    )


def trained(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that learn, by name; tied weights appear once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def state_tensors(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`<moment>.<parameter name>` -> tensor, as it lies. The number of updates made is kept apart, as a number."""
    return {f"{moment}.{name}": optimizer.state[p][moment]
            for name, p in trained(model).items() if p in optimizer.state for moment in _MOMENTS}


def load_state(model: Any, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], updates: int) -> None:
    """Give every parameter its moments. Raises UserError where names or shapes belong to another model."""
    problems = []
    for name, p in trained(model).items():
        found = [tensors.get(f"{moment}.{name}") for moment in _MOMENTS]
        if any(t is None or t.shape != p.shape for t in found):
            problems.append(f"optimizer: no state of the shape {tuple(p.shape)} for {name}; "
                            "it comes from a model of another architecture")
            continue
        optimizer.state[p] = {"step": torch.tensor(float(updates), device=p.device),
                              **{m: like(t, p) for m, t in zip(_MOMENTS, found, strict=True) if t is not None}}
    if problems:
        raise UserError(*problems)


@clock.spending(clock.WRITE)
def save_folder(folder: Path, tensors: dict[str, Tensor], updates: int) -> None:
    """Write whole `state_tensors` for the next training stage: `updates` lets the schedule run through."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / TENSORS)
    (folder / STATE).write_text(json.dumps({"updates": updates}) + "\n")


@clock.spending(clock.LOAD)
def load_folder(folder: Path, model: Any, optimizer: torch.optim.Optimizer) -> int:
    """Load what `save_folder` wrote; of sharded weights each process reads its rows. Returns the updates so far."""
    if not (folder / STATE).is_file():
        raise UserError(f"{folder}: no {STATE}, expected the optimizer folder of a train_preference artifact "
                        "made with keep_optimizer: true")
    updates = int(json.loads((folder / STATE).read_text())["updates"])
    load_state(model, optimizer, shards.Saved.of([folder / TENSORS]).load(trained(model)), updates)
    return updates
