"""Training checkpoints: complete or absent, never half.

`<folder>/step-<n>/` holds the float32 masters of what is trained, the optimizer's moments, what the objective carries
along, and a manifest with the hash of each file, written last; the whole is made under a temporary name, flushed and
renamed. Order of data and random numbers are functions of (seed, step), so the step is the only other state there is.
Tensors are whole, however many processes trained them, so any number can go on.
"""

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline import clock
from pipeline.files import file_hash, read_sealed, sync, write_sealed
from pipeline.training import optim
from pipeline.training.distribute import like
from pipeline.training.gradients import ALONE, World

_MODEL, _OPTIMIZER, _EXTRA = "model.safetensors", "optimizer.safetensors", "extra.safetensors"
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Loaded:
    """Where a checkpoint stands."""

    step: int  # of this stage
    updates: int  # of the optimizer, earlier stages included
    extra: dict[str, Tensor]  # what the objective carries from step to step


@clock.spending(clock.WRITE)
def save(folder: Path, model: Any, optimizer: torch.optim.Optimizer, at: Loaded, keep: int,
         world: World = ALONE) -> Path:
    """Write the state after step `at.step` and drop all but `keep`. Every process calls it; the first one writes."""
    target, temporary = folder / f"step-{at.step:08d}", folder / f".step-{at.step:08d}.tmp"
    if world.first:
        for stale in folder.glob(".step-*.tmp"):
            shutil.rmtree(stale)
        temporary.mkdir(parents=True)
    states = {_MODEL: weights(model), _OPTIMIZER: optim.state_tensors(model, optimizer), _EXTRA: at.extra}
    for name, tensors in states.items():  # one file after the other: as little memory as can be
        found = world.whole(tensors)
        if world.first:
            save_file(found, temporary / name)
    if world.first:
        _finish(folder, temporary, target, at, keep)
    world.wait()
    return target


def _finish(folder: Path, temporary: Path, target: Path, at: Loaded, keep: int) -> None:
    hashes = {name: file_hash(temporary / name) for name in (_MODEL, _OPTIMIZER, _EXTRA)}
    manifest = {"step": at.step, "updates": at.updates, "sha256": hashes}
    write_sealed(temporary / _MANIFEST, manifest)
    for path in (*temporary.iterdir(), temporary):
        sync(path)
    if target.exists():  # left damaged by something else; `newest` passed over it
        shutil.rmtree(target)
    os.replace(temporary, target)
    sync(folder)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint whose files have the hashes of its manifest."""
    return next((path for path in sorted(folder.glob("step-*"), reverse=True) if _complete(path)), None)


@clock.spending(clock.LOAD)
def load(path: Path, model: Any, optimizer: torch.optim.Optimizer) -> Loaded:
    """Put the state back, sharded as the model is."""
    manifest = read_sealed(path / _MANIFEST)
    assert manifest is not None, "`newest` has read it"
    put(model, load_file(path / _MODEL))
    optim.load_state(model, optimizer, load_file(path / _OPTIMIZER), manifest["updates"])
    return Loaded(int(manifest["step"]), int(manifest["updates"]), load_file(path / _EXTRA))


@contextlib.contextmanager
def told_to_stop() -> Iterator[list[int]]:
    """A list that SIGTERM is put into, so that the step that is being made is ended and kept. A second one ends the
    process at once, as does the first where the body comes to its end first. Outside the main thread nothing changes.
    """
    told: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    before = signal.getsignal(signal.SIGTERM)

    def note(number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, before)
        told.append(number)

    signal.signal(signal.SIGTERM, note)
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)
    if told:
        os.kill(os.getpid(), signal.SIGTERM)


def weights(model: Any) -> dict[str, Tensor]:
    """What is trained, by name, as it lies."""
    return {name: p.detach() for name, p in optim.trained(model).items()}


@torch.no_grad()
def put(model: Any, saved: dict[str, Tensor]) -> None:
    """Give the trained parameters the values of `saved`, whole tensors."""
    live = optim.trained(model)
    assert live.keys() == saved.keys(), "a checkpoint lives in the work folder of one key, so of one model"
    for name, p in live.items():
        p.copy_(like(saved[name], p))


def _complete(path: Path) -> bool:
    try:
        manifest = read_sealed(path / _MANIFEST)
        return manifest is not None and all(
            file_hash(path / name) == wanted for name, wanted in manifest["sha256"].items())
    except (OSError, KeyError):
        return False
