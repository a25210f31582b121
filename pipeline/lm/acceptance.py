"""Whether a model can go all the way: what planning asks of it. Nothing here imports torch, no weight is read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from pipeline import hub, supervisor
from pipeline.errors import UserError
from pipeline.lm import checks, probe
from pipeline.source import ADAPTER, ADAPTER_WEIGHTS, Source

_PROBE_SECONDS = 300
_SETTING = re.compile(r"model\.(?!safetensors)\w+: ")


def problems(source: Source, reward: bool, longest: int = 0) -> list[str]:
    """Everything in the way of this model, each with the way out.

    reward: whether a reward model is trained on it. longest: tokens that prompt and completion may have together.
    """
    if source.on_hub:
        try:
            return of_folder(source.path, _on_hub(source.path), reward, source.template, longest)
        except UserError as error:
            return error.problems
    if source.gguf and source.place.is_file():
        return _named(source.place, _probed(source.place, reward, source.template))
    if not source.place.is_dir():
        way = f"make it with: {source.made_by}" if source.made_by else (
            "expected a Hugging Face model folder, a GGUF file, or org/name of a model on the hub")
        return [f"model.path: {source.place} is not a folder; {way}"]
    if source.adapter:
        return _adapter(source, reward, longest)
    return of_folder(source.path, checks.Folder.of(source.place), reward, source.template, longest)


def of_folder(name: str, folder: checks.Folder, reward: bool, template: str | None = None, longest: int = 0
              ) -> list[str]:
    found = checks.problems(folder, template is not None)
    if checks.small_files_whole(folder):
        found += _probed(folder.path, reward, template, longest)
    return _named(name, found)


def _named(name: object, problems: list[str]) -> list[str]:
    """With the model's place in front, where no setting stands there."""
    return [problem if _SETTING.match(problem) else f"model.path: {name}: {problem}" for problem in problems]


def _on_hub(name: str) -> checks.Folder:
    sizes = hub.sizes(name)
    return checks.Folder(hub.fetched(name, weights=False), sizes, here=False)


def _probed(place: Path, reward: bool, template: str | None, longest: int = 0) -> list[str]:
    """What transformers finds, in a process of its own that nothing of the folder can ask anything."""
    asked = json.dumps({"place": str(place.resolve()), "reward": reward, "template": template,
                        "longest": longest})
    done = subprocess.run(
        [sys.executable, "-P", "-m", probe.__name__, asked], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=_PROBE_SECONDS, env={**os.environ, **supervisor.imports()})
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return [f"transformers cannot read it ({lines[-1][:300]})"]
    return list(json.loads(done.stdout.splitlines()[-1]))


def _adapter(source: Source, reward: bool, longest: int) -> list[str]:
    where = f"model.path: {source.place}"
    read = source.adapter_config
    if not read:
        return [f"{where}: {ADAPTER} is no mapping of settings in JSON; copy it again"]
    found = []
    if read.get("peft_type") != "LORA":
        found.append(f"{where}: adapter of type {read.get('peft_type')!r}, expected LORA; merge it where it was made")
    if not (source.place / ADAPTER_WEIGHTS).is_file():
        found.append(f"{where}: an adapter without {ADAPTER_WEIGHTS}; save it again with save_pretrained")
    elif fault := checks.unreadable(source.place / ADAPTER_WEIGHTS):
        found.append(f"{where}: {fault}")
    base = source.base_of_adapter()
    if base is None:
        return [*found, f"{where}: an adapter for {read.get('base_model_name_or_path')!r}, which is no folder here; "
                "name the model to merge it on: model.base=DIR or model.base=org/name"]
    return found + problems(base, reward, longest)
