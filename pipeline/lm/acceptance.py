"""Whether a model can go all the way: what planning asks of it. Nothing here imports torch, no weight is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import hub, supervisor, weights
from pipeline.errors import UserError
from pipeline.lm import checks, probe

_PROBE_SECONDS = 300
GGUF = ".gguf"


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
        return (self.place / checks.ADAPTER).is_file()

    @property
    def adapter_config(self) -> dict[str, Any]:
        """adapter_config.json; empty where it is no mapping, which `problems` tells."""
        try:
            read = json.loads((self.place / checks.ADAPTER).read_text())
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


def problems(source: Source, reward: bool) -> list[str]:
    """Everything in the way of this model, each with the way out. reward: whether a reward model is trained on it."""
    if source.on_hub:
        try:
            return of_folder(source.path, _on_hub(source.path), reward, source.template)
        except UserError as error:
            return error.problems
    if source.gguf and source.place.is_file():
        return _named(source.place, _probed(source.place, reward, source.template))
    if not source.place.is_dir():
        way = f"make it with: {source.made_by}" if source.made_by else (
            "expected a Hugging Face model folder, a GGUF file, or org/name of a model on the hub")
        return [f"model.path: {source.place} is not a folder; {way}"]
    if source.adapter:
        return _adapter(source, reward)
    return of_folder(source.path, checks.Folder.of(source.place), reward, source.template)


def parameters(source: Source) -> int | None:
    """How many weights the model has, by the headers of its files; None where they do not tell."""
    try:
        if source.on_hub:
            return hub.parameters(source.path)
        if source.gguf:
            return weights.gguf_parameters(source.place)
        if source.adapter:
            base = source.base_of_adapter()
            return None if base is None else parameters(base)
        return weights.parameters(source.place)
    except Exception:  # of a broken file, as many as there are readers: `problems` tells it
        return None


def of_folder(name: str, folder: checks.Folder, reward: bool, template: str | None = None) -> list[str]:
    found = checks.problems(folder, template is not None)
    if not found:
        found = _probed(folder.path, reward, template)
    return _named(name, found)


def _named(name: object, problems: list[str]) -> list[str]:
    """With the model's place in front, where no key stands there."""
    return [problem if problem.startswith("model.") else f"model.path: {name}: {problem}" for problem in problems]


def _on_hub(name: str) -> checks.Folder:
    sizes = hub.sizes(name)
    return checks.Folder(hub.fetched(name, weights=False), sizes, here=False)


def _probed(place: Path, reward: bool, template: str | None) -> list[str]:
    """What transformers finds, in a process of its own that nothing of the folder can ask anything."""
    asked = json.dumps({"place": str(place.resolve()), "reward": reward, "template": template})
    done = subprocess.run(
        [sys.executable, "-P", "-m", probe.__name__, asked], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=_PROBE_SECONDS, env={**os.environ, **supervisor.imports()})
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return [f"transformers cannot read it ({lines[-1][:300]})"]
    return list(json.loads(done.stdout.splitlines()[-1]))


def _adapter(source: Source, reward: bool) -> list[str]:
    where = f"model.path: {source.place}"
    read = source.adapter_config
    if not read:
        return [f"{where}: {checks.ADAPTER} is no mapping of settings in JSON; copy it again"]
    found = []
    if read.get("peft_type") != "LORA":
        found.append(f"{where}: adapter of type {read.get('peft_type')!r}, expected LORA; merge it where it was made")
    if not (source.place / checks.ADAPTER_WEIGHTS).is_file():
        found.append(f"{where}: an adapter without {checks.ADAPTER_WEIGHTS}; save it again with save_pretrained")
    elif fault := checks.unreadable(source.place / checks.ADAPTER_WEIGHTS):
        found.append(f"{where}: {fault}")
    base = source.base_of_adapter()
    if base is None:
        return [*found, f"{where}: an adapter for {read.get('base_model_name_or_path')!r}, which is no folder here; "
                "name the model to merge it on: model.base=DIR or model.base=org/name"]
    return found + problems(base, reward)
