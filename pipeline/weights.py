"""What the headers of weights' files say: shapes and numbers of weights, without reading one."""

import json
import math
import struct
from pathlib import Path
from typing import IO, Any

INDEX = "model.safetensors.index.json"
_HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")  # of sequence classifiers
_GGUF_BYTES = (1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8)  # of a value, by its type; a text and an array say their own
_TEXT, _ARRAY = 8, 9
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


def parameters(folder: Path) -> int:
    """How many weights a folder holds."""
    return sum(math.prod(tensor["shape"]) for tensor in tensors(folder).values())


def gguf_parameters(path: Path) -> int:
    """How many weights a GGUF file holds. The package gguf makes arrays of every token before it tells: seconds.

    Raises ValueError, struct.error or IndexError where the file is none.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path.name} is no GGUF file")
        _, tensors, fields = _unpacked(file, "<IQQ")
        for _ in range(fields):
            _skip_text(file)
            _skip_value(file, *_unpacked(file, "<I"))
        return sum(_gguf_weights(file) for _ in range(tensors))


def _gguf_weights(file: IO[bytes]) -> int:
    """Of the next tensor: its name, its dimensions, its type and place."""
    _skip_text(file)
    (dimensions,) = _unpacked(file, "<I")
    shape = _unpacked(file, f"<{dimensions}Q")
    file.seek(12, 1)
    return math.prod(shape)


def _skip_value(file: IO[bytes], kind: int) -> None:
    if kind == _TEXT:
        _skip_text(file)
    elif kind == _ARRAY:
        inner, count = _unpacked(file, "<IQ")
        if inner in (_TEXT, _ARRAY):
            for _ in range(count):
                _skip_value(file, inner)
        else:
            file.seek(count * _GGUF_BYTES[inner], 1)
    else:
        file.seek(_GGUF_BYTES[kind], 1)


def _skip_text(file: IO[bytes]) -> None:
    (length,) = _unpacked(file, "<Q")
    file.seek(length, 1)


def _unpacked(file: IO[bytes], layout: str) -> tuple[int, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))
