"""A model of the store as a plain folder for others: its weights, rounded if asked, and a config old readers know."""

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.files import let_read
from pipeline.lm.rope import in_old_words
from pipeline.source import ADAPTER, ADAPTER_WEIGHTS


def write(source: Path, target: Path, dtype: str | None) -> None:
    """Copy the model folder `source` to `target`, its floating-point weights in `dtype` (None: as they are)."""
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.suffix != ".safetensors" or dtype is None:
            shutil.copyfile(path, target / path.name)
        else:
            _rounded(path, target / path.name, getattr(torch, dtype))
    index = target / "model.safetensors.index.json"
    if dtype is not None and index.is_file():
        content = json.loads(index.read_text())
        weights = sum(p.stat().st_size for p in target.glob("*.safetensors"))
        index.write_text(json.dumps({**content, "metadata": {**content["metadata"], "total_size": weights}}, indent=2))
    config = json.loads((target / "config.json").read_text())
    written = dtype or config.get("dtype") or config.get("torch_dtype")
    config = in_old_words({**config, **({"dtype": written, "torch_dtype": written} if written else {})})
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_adapter(source: Path, target: Path, base: str, task: str, dtype: str | None) -> None:
    """Copy the adapter folder `source` to `target`, with the model it was trained on and peft's word for its task."""
    target.mkdir(parents=True)
    if dtype is None:
        shutil.copyfile(source / ADAPTER_WEIGHTS, target / ADAPTER_WEIGHTS)
    else:
        _rounded(source / ADAPTER_WEIGHTS, target / ADAPTER_WEIGHTS, getattr(torch, dtype))
    config = json.loads((source / ADAPTER).read_text())
    config = {**config, "base_model_name_or_path": base, "task_type": task}
    (target / ADAPTER).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _rounded(source: Path, target: Path, dtype: torch.dtype) -> None:
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    save_file({name: tensor.to(dtype) if tensor.is_floating_point() else tensor
               for name, tensor in load_file(source).items()}, target, metadata)
    let_read(target, source)
