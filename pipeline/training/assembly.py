"""From a loaded model to one that trains, and back to folders: adapters, compilation, merging."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface

from pipeline.lm import adapters, folders, forward, memory
from pipeline.stage import derive_seed
from pipeline.training import checkpoint, distribute
from pipeline.training.gradients import World
from pipeline.training.settings import TrainerSettings, TrainRuntime


def adapt(model: Any, trainer: TrainerSettings, runtime: TrainRuntime, seed: int, whole: tuple[str, ...] = ()) -> None:
    """Put in adapters and compile, in place. `whole` are modules that learn altogether beside an adapter."""
    if trainer.adapter.on:
        adapters.add(model, trainer.adapter, derive_seed(seed, "adapter"), whole)
    if runtime.compile:
        # attention over a tree of prompts and completions walks it in Python: compiled, every batch would be a new one
        AttentionInterface.register(forward.ATTENTION, torch.compiler.disable(forward.tree_attention))
        for layer in distribute.layers_of(model):  # one by one: the same code, compiled once
            layer.compile(dynamic=True)


def deliver(
    model: Any, load: Callable[[], Any], source: Path, out: Path, trainer: TrainerSettings, world: World
) -> None:
    """Write `out/model/`, a plain Hugging Face folder, and `out/adapter/` where one was trained.

    Every process calls it, the first one writes. `load` gives the model training started from, on the CPU.
    """
    with memory.enough("while writing the model", memory.WRITING):
        trained = world.whole(checkpoint.weights(model))
        if not world.first:
            return
        if trainer.adapter.on:
            adapters.save(model, trained, out / "adapter")
            model = adapters.merged(load(), out / "adapter")
        elif world.shell is not None:
            model = load()
            checkpoint.put(model, trained)
        folders.save_folder(model, source, out / "model", trainer.save_dtype)
