"""Training checkpoints: complete or absent, never half.

`<folder>/step-<n>/` holds the float32 masters, the optimizer's moments and a manifest with the hash of each file,
written last; the whole is made under a temporary name, flushed and renamed. Order of data and random numbers are
functions of (seed, step), so the step is the only other state there is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipeline.training import optim

_MODEL, _OPTIMIZER, _MANIFEST = "model.safetensors", "optimizer.safetensors", "manifest.json"


def save(folder: Path, model: Any, optimizer: torch.optim.Optimizer, step: int, updates: int, keep: int) -> Path:
    """Write the state after `step` steps of this stage (`updates` of the optimizer) and drop all but `keep`."""
    target, temporary = folder / f"step-{step:08d}", folder / f".step-{step:08d}.tmp"
    for stale in folder.glob(".step-*.tmp"):
        shutil.rmtree(stale)
    temporary.mkdir(parents=True)
    save_file(_weights(model), temporary / _MODEL)
    save_file(optim.state_tensors(model, optimizer), temporary / _OPTIMIZER)
    hashes = {name: _sha256(temporary / name) for name in (_MODEL, _OPTIMIZER)}
    (temporary / _MANIFEST).write_text(json.dumps({"step": step, "updates": updates, "sha256": hashes}, indent=1))
    for path in (*temporary.iterdir(), temporary):
        _sync(path)
    if target.exists():  # left damaged by something else; `newest` passed over it
        shutil.rmtree(target)
    os.replace(temporary, target)
    _sync(folder)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return target


def newest(folder: Path) -> Path | None:
    """The newest checkpoint whose files have the hashes of its manifest."""
    return next((path for path in sorted(folder.glob("step-*"), reverse=True) if _complete(path)), None)


def load(path: Path, model: Any, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Put the state back. Returns (steps of this stage, updates of the optimizer)."""
    manifest = json.loads((path / _MANIFEST).read_text())
    weights, saved = _weights(model), load_file(path / _MODEL)
    assert weights.keys() == saved.keys(), "a checkpoint lives in the work folder of one key, so of one model"
    with torch.no_grad():
        for name, tensor in _live(model).items():
            tensor.copy_(saved[name])
    optim.load_state(model, optimizer, load_file(path / _OPTIMIZER), manifest["updates"])
    return int(manifest["step"]), int(manifest["updates"])


def _live(model: Any) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())  # tied weights appear once


def _weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in _live(model).items()}


def _complete(path: Path) -> bool:
    try:
        hashes = json.loads((path / _MANIFEST).read_text())["sha256"]
        return all(_sha256(path / name) == wanted for name, wanted in hashes.items())
    except (OSError, ValueError, KeyError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
