"""What each of several processes writes of a checkpoint's tensors and reads of it again: its own rows.

Process r of n writes `<name>.<r>-of-<n>.safetensors` with its rows (of the first dimension) of every tensor. The rows
of all n files, one after the other, are the whole, so any other number of processes finds its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from pipeline.training.gradients import World


def rows(length: int, rank: int, size: int) -> tuple[int, int]:
    """The first row of process `rank`, and the one behind its last: as FSDP2 deals `length` rows out."""
    each = -(-length // size)
    return min(length, rank * each), min(length, (rank + 1) * each)


def file_of(name: str, rank: int, size: int) -> str:
    """What the file `name` of a single process is called where process `rank` of `size` writes it."""
    path = Path(name)
    return name if size == 1 else f"{path.stem}.{rank:05d}-of-{size:05d}{path.suffix}"


def staged(tensors: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """Copies on the CPU of this process's rows, without an exchange. What every process has whole is dealt out like the
    rest; a number is the first one's.
    """
    found = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            own = tensor.to_local()
        elif tensor.ndim:
            own = tensor[slice(*rows(len(tensor), world.rank, world.size))]
        else:
            own = tensor if world.first else tensor.new_empty(0)
        if own.numel():
            found[name] = own.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return found


@dataclass(frozen=True)
class Saved:
    """The files of all processes that wrote, opened: only the rows that are asked for are read."""

    places: dict[str, list[Any]]  # tensor's name -> the files with rows of it, in the order of the rows

    @classmethod
    def of(cls, paths: Sequence[Path]) -> "Saved":
        """paths: by the rank that wrote."""
        places: dict[str, list[Any]] = {}
        for file in [safe_open(path, framework="pt") for path in paths]:
            names: list[str] = file.keys()
            for name in names:
                places.setdefault(name, []).append(file)
        return cls(places)

    def load(self, live: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
        """Every tensor by name. One called `<parameter>` or `<prefix>.<parameter>` lies as the parameter does, each
        process's rows in that process; others are whole, on the CPU.
        """
        return {name: self._like(name, live.get(name, live.get(name.partition(".")[2]))) for name in self.places}

    def _like(self, name: str, parameter: Tensor | None) -> Tensor:
        if not isinstance(parameter, DTensor) or self._shape(name) != list(parameter.shape):
            return self._read(name)
        mesh, local = parameter.device_mesh, parameter.to_local()
        if local.numel():
            local = self._read(name, rows(len(parameter), mesh.get_local_rank(), mesh.size())).to(local.device)
        return DTensor.from_local(local, mesh, parameter.placements, run_check=False, shape=parameter.shape,
                                  stride=parameter.stride())

    def _shape(self, name: str) -> list[int]:
        shapes = [file.get_slice(name).get_shape() for file in self.places[name]]
        return [sum(shape[0] for shape in shapes), *shapes[0][1:]]

    def _read(self, name: str, wanted: tuple[int, int] | None = None) -> Tensor:
        """Rows [start, stop) of a tensor, None: all of it."""
        files, found, first = self.places[name], [], 0
        if wanted is None and len(files) == 1:  # a number, too
            return files[0].get_tensor(name)
        for file in files:
            part = file.get_slice(name)
            length = part.get_shape()[0]
            start, stop = wanted or (0, first + length)
            low, high = max(start - first, 0), min(stop - first, length)
            if low < high:
                found.append(part[low:high])
            first += length
        return torch.cat(found)
