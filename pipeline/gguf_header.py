"""What the header of a GGUF file says, value by value: the package gguf makes arrays of every token first: seconds."""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_FORMATS = "BbHhIif?..Qqd"  # of a value, by its type; . is a text and an array
_TEXT, _ARRAY = 8, 9
_LONGEST = 2**20  # bytes of a text that is kept; no template is longer
_ALIGNMENT = "general.alignment"


@dataclass(frozen=True)
class Tensor:
    type: int  # of gguf.GGMLQuantizationType
    weights: int
    offset: int  # bytes behind the start of the data


@dataclass(frozen=True)
class Header:
    texts: dict[str, str]  # the fields that are texts: general.architecture, tokenizer.chat_template ...
    tensors: list[Tensor]
    start: int  # where the data begin, bytes

    @property
    def parameters(self) -> int:
        """How many weights the file holds."""
        return sum(tensor.weights for tensor in self.tensors)


def read(path: Path) -> Header:
    """The header of a GGUF file of version 2 or 3. Raises ValueError, struct.error where it is none or is cut short."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path.name} does not begin as a GGUF file")
        version, tensors, fields = _unpacked(file, "<IQQ")
        if version not in (2, 3):
            raise ValueError(f"version {version} of the format, expected 2 or 3")
        texts, alignment = dict[str, str](), 32
        for _ in range(fields):
            name, (kind,) = _text(file), _unpacked(file, "<I")
            if kind == _TEXT:
                texts[name] = _text(file)
            elif name == _ALIGNMENT:
                (alignment,) = _unpacked(file, "<" + _format(kind))
            else:
                _skip(file, kind)
        found = [_tensor(file) for _ in range(tensors)]
        return Header(texts, found, math.ceil(file.tell() / alignment) * alignment)


def _tensor(file: IO[bytes]) -> Tensor:
    _text(file)
    (dimensions,) = _unpacked(file, "<I")
    shape = _unpacked(file, f"<{dimensions}Q")
    kind, offset = _unpacked(file, "<IQ")
    return Tensor(kind, math.prod(shape), offset)


def _skip(file: IO[bytes], kind: int) -> None:
    if kind == _TEXT:
        (length,) = _unpacked(file, "<Q")
        file.seek(length, 1)
    elif kind == _ARRAY:
        inner, count = _unpacked(file, "<IQ")
        if inner in (_TEXT, _ARRAY):
            for _ in range(count):
                _skip(file, inner)
        else:
            file.seek(count * struct.calcsize("<" + _format(inner)), 1)
    else:
        file.seek(struct.calcsize("<" + _format(kind)), 1)


def _format(kind: int) -> str:
    if not 0 <= kind < len(_FORMATS):
        raise ValueError(f"a value of the unknown type {kind}")
    return _FORMATS[kind]


def _text(file: IO[bytes]) -> str:
    (length,) = _unpacked(file, "<Q")
    if length > _LONGEST:
        raise ValueError(f"a text of {length} bytes in its header")
    return file.read(length).decode(errors="replace")


def _unpacked(file: IO[bytes], layout: str) -> tuple[int, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))
