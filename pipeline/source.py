"""Where a model comes from, and how many weights it has: known without torch, and without reading a weight."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import gguf_header, hub, weights

ADAPTER, ADAPTER_WEIGHTS, GGUF = "adapter_config.json", "adapter_model.safetensors", ".gguf"


@dataclass(frozen=True)
class Source:
    """Where a model comes from. A folder on disk is `path` itself; of a hub name it is the cache's once fetched."""

    path: str  # a folder, a GGUF file, an adapter's folder or org/name@commit
    base: str | None = None  # of an adapter, instead of the one that it names
    made_by: str | None = None  # the command that makes the folder, where it is a preset's
    template: str | None = None  # the chat template it will be given instead of its own: see shapes.named

    @property
    def place(self) -> Path:
        return Path(self.path).expanduser()

    @property
    def on_hub(self) -> bool:
        return hub.named(self.path) is not None

    @property
    def gguf(self) -> bool:
        return self.path.endswith(GGUF)

    @property
    def adapter(self) -> bool:
        return (self.place / ADAPTER).is_file()

    @property
    def adapter_config(self) -> dict[str, Any]:
        """adapter_config.json; empty where it is no mapping, which `problems` tells."""
        try:
            read = json.loads((self.place / ADAPTER).read_text())
        except ValueError:
            read = None
        return read if isinstance(read, dict) else {}

    def base_of_adapter(self) -> Source | None:
        """What the adapter is merged on; None where adapter_config.json names nothing that can be had, or is none."""
        named = self.adapter_config.get("base_model_name_or_path")
        if self.base is not None:
            return Source(self.base, template=self.template)
        beside = self.place / str(named)  # an absolute path stays what it is
        here = named and (beside / "config.json").exists()
        return Source(str(beside.resolve()), template=self.template) if here else None


def parameters(source: Source) -> int | None:
    """How many weights the model has, by the headers of its files; None where they do not tell."""
    try:
        if source.on_hub:
            return hub.parameters(source.path)
        if source.gguf:
            return gguf_header.read(source.place).parameters
        if source.adapter:
            base = source.base_of_adapter()
            return None if base is None else parameters(base)
        return weights.parameters(source.place)
    except Exception:  # of a broken file, as many as there are readers: `problems` tells it
        return None
