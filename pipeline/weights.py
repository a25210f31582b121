"""What the headers of weights' files say: shapes and numbers of weights, without reading one."""

import json
import math
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
_HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")  # of sequence classifiers
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
_MOST = 100 * 2**20  # bytes of a header; safetensors itself takes no longer ones


def header(path: Path) -> dict[str, Any]:
    """Tensor name -> {dtype, shape, data_offsets}. Raises ValueError where the file is cut short or is none."""
    total = path.stat().st_size
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > min(_MOST, total):
            raise ValueError(f"{path.name} is no safetensors file, or its header is cut short")
        content = json.loads(file.read(size))
    try:
        found = {name: tensor for name, tensor in content.items() if name != "__metadata__"}
        end = max((tensor["data_offsets"][1] for tensor in found.values()), default=0)
    except (AttributeError, LookupError, TypeError):
        raise ValueError(f"{path.name} is no safetensors file: its header has no tensors with their places") from None
    if total != 8 + size + end:
        raise ValueError(f"{path.name} has {total} bytes, its header promises {8 + size + end}")
    return found


def files(folder: Path) -> list[Path]:
    """The weights' files, as transformers chooses them: model.safetensors, else those that the index names.

    Raises OSError where the index cannot be read.
    """
    if not (folder / "model.safetensors").exists() and (index := folder / INDEX).is_file():
        try:
            return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise OSError(f"{index} is no index of weights") from None
    return [folder / "model.safetensors"]


def tensors(folder: Path) -> dict[str, Any]:
    """Every tensor of a model folder, by name. Raises ValueError as `header` does, OSError for a missing file."""
    return {name: tensor for path in files(folder) for name, tensor in header(path).items()}


def outputs(folder: Path) -> int | None:
    """Outputs of a sequence classifier, told from its head's shape: config.json may say otherwise, or nothing. None: it
    has no head of a known name. Raises what `tensors` raises.
    """
    found = tensors(folder)
    return next((int(found[name]["shape"][0]) for name in _HEADS if name in found), None)


def rows(folder: Path) -> int | None:
    """Rows of the token embedding; None where the weights are not here or their names are not known."""
    try:
        held = {tensor["shape"][0] for name, tensor in tensors(folder).items()
                if name.endswith(_EMBEDDINGS) and len(tensor["shape"]) == 2}
    except (OSError, ValueError):
        return None
    return held.pop() if len(held) == 1 else None


def parameters(folder: Path) -> int:
    """How many weights a folder holds."""
    return sum(math.prod(tensor["shape"]) for tensor in tensors(folder).values())
