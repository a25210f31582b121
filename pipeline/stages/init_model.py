"""The model everything starts from: a Hugging Face folder on disk, or a tiny one made from a config.

A folder is checked before anything runs (`check`) and copied, with every id that can end an answer written into its
generation_config.json. From scratch: a byte-level BPE tokenizer trained on the data's text and a Llama drawn from
the seed.

Output: `model/`.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import setting
from pipeline.errors import UserError
from pipeline.lm import shapes, tiny
from pipeline.lm.template_check import NO_TEMPLATE, template_problems
from pipeline.stage import Context, Cost, Stage

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class Arch:
    """A Llama. Sizes in units of weights, `max_position` in tokens."""

    hidden_size: int = setting(256, low=8)  # of the residual stream
    intermediate_size: int = setting(704, low=8)  # of the feed-forward layers
    layers: int = setting(4, low=1)  # transformer blocks
    heads: int = setting(4, low=1)  # of attention
    kv_heads: int = setting(4, low=1)  # heads with keys of their own; divides heads
    max_position: int = setting(1024, low=16)  # tokens of prompt and completion
    vocab_size: int = setting(2048, low=270)  # 256 bytes and the special tokens come first
    tie_embeddings: bool = True  # input and output share one matrix
    rope_theta: float = setting(10000.0, above=0.0)  # base of the rotary positions
    initializer_range: float = setting(0.02, above=0.0)  # standard deviation of the first weights

    def check(self) -> list[tuple[str, str]]:
        problems = []
        if self.hidden_size % (2 * self.heads):
            problems.append(("hidden_size", f"{self.hidden_size} is not an even multiple of heads ({self.heads})"))
        if self.heads % self.kv_heads:
            problems.append(("kv_heads", f"{self.kv_heads} does not divide heads ({self.heads})"))
        return problems


@dataclass(frozen=True)
class Settings:
    """`arch` is for models from scratch and unused when runtime.path is given."""

    arch: Arch | None = None  # null: taken from path
    chat_template: str | None = None  # roles, chatml, plain, or a file of Jinja; null: the one the model brings
    date: str | None = setting(None, added=True)  # what a chat template that asks for the day is told; null: 2024-07-26

    def check(self) -> list[tuple[str, str]]:
        found = {"chat_template": shapes.choice_problem(self.chat_template), "date": shapes.date_problem(self.date)}
        return [(key, problem) for key, problem in found.items() if problem]


@dataclass(frozen=True)
class Runtime:
    """`path`: a Hugging Face folder. Its content, not its place, goes into the key (`files`)."""

    path: str | None = None  # a Hugging Face folder; null: made from nothing


def check(settings: Settings, runtime: Runtime) -> list[str]:
    """What stands in the way of this stage, as messages. Imports nothing heavy, reads no weights."""
    if runtime.path is None:
        if settings.arch is not None and settings.chat_template not in (None, *tiny.TEMPLATES):
            return [f"model.chat_template: {settings.chat_template}, expected {' or '.join(tiny.TEMPLATES)} for a "
                    "model made from nothing"]
        return [] if settings.arch is not None and settings.chat_template is not None else [
            "model.path: missing, expected a Hugging Face folder (model.path=DIR) or a model from scratch (model=tiny)"]
    folder = Path(runtime.path)
    if not folder.is_dir():
        return [f"model.path: {folder} is not a folder, expected a Hugging Face model folder"]
    return [f"model.path: {folder}: {problem}" for problem in _folder_problems(folder, settings.chat_template)]


def files(settings: Settings, runtime: Runtime) -> list[Path]:
    """Files from outside whose content decides the result."""
    if runtime.path is None:
        return []
    own = [p for p in sorted(Path(runtime.path).iterdir()) if p.is_file() and not _skipped(p)]
    return [*own, *shapes.files(settings.chat_template)]


def run(context: Context) -> None:
    settings, runtime = context.settings, context.runtime
    if problems := check(settings, runtime):
        raise UserError(*problems)
    target = context.out / "model"
    shutil.rmtree(target, ignore_errors=True)  # of a try that was killed
    target.mkdir(parents=True)
    if runtime.path is not None:
        for path in files(settings, runtime):
            if path.parent == Path(runtime.path):
                shutil.copyfile(path, target / path.name)
    else:
        _from_scratch(target, settings, context)
    shapes.dress(target, None if runtime.path is None else settings.chat_template, settings.date)
    _write_stop_ids(target)
    context.report.count(parameters=_parameters(target))


def _from_scratch(target: Path, settings: Settings, context: Context) -> None:
    from pipeline.lm import folders

    folders.quiet()

    data = context.optional("data")
    if data is None:
        raise UserError("init_model: a model from scratch learns its tokenizer from text, expected an input `data`")
    assert settings.arch is not None and settings.chat_template is not None
    tokenizer = tiny.train_tokenizer(tiny.corpus(data), settings.arch.vocab_size,
                                     tiny.TEMPLATES[settings.chat_template], settings.arch.max_position)
    tokenizer.save_pretrained(target)
    tiny.tiny_llama(settings.arch, tokenizer, context.seed).save_pretrained(target)


def _write_stop_ids(folder: Path) -> None:
    """List every id that can end an answer: the config's, the tokenizer's, and what the template ends a turn with."""
    from pipeline.lm.folders import load_tokenizer
    from pipeline.lm.template import turn_end_id

    tokenizer = load_tokenizer(folder)
    path = folder / "generation_config.json"
    config: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    listed = config.get("eos_token_id")
    if problems := template_problems(tokenizer):
        raise UserError(*(f"model.path: {problem}" for problem in problems))
    candidates = [*(listed if isinstance(listed, list) else [listed]), tokenizer.eos_token_id, turn_end_id(tokenizer)]
    stops = list(dict.fromkeys(i for i in candidates if i is not None))
    if not stops:
        raise UserError(f"{folder}: no id ends an answer: generation_config.json and the tokenizer name no EOS and the "
                        "chat template ends a turn with plain text; set eos_token in tokenizer_config.json")
    if problems := template_problems(tokenizer, tuple(stops)):
        raise UserError(*(f"model.path: {problem}" for problem in problems))
    path.write_text(json.dumps({**config, "eos_token_id": stops}, indent=2, sort_keys=True) + "\n")


def _folder_problems(folder: Path, template: str | None) -> list[str]:
    problems = []
    if not (folder / "config.json").is_file():
        problems.append("no config.json, expected the folder save_pretrained writes")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        old = any(folder.glob("*.bin"))
        problems.append("no *.safetensors weights" + ("; there are pickled *.bin files, which are not read: load the "
                        "model and save_pretrained it again" if old else ", expected at least one file"))
    problems.extend(f"{p.name} is cut short, copy it again" for p in weights if not _whole(p))
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        problems.append(f"no tokenizer, expected one of {', '.join(_TOKENIZER_FILES)}; copy the tokenizer files of the "
                        "model it was trained from")
    if template is None and not _has_template(folder):
        problems.append(NO_TEMPLATE)
    return problems


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_text()).get("chat_template"))


def _header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return {"size": size, **json.loads(file.read(min(size, path.stat().st_size)))}


def _whole(path: Path) -> bool:
    try:
        header = _header(path)
    except ValueError:
        return False
    end = max((t["data_offsets"][1] for t in header.values() if isinstance(t, dict) and "data_offsets" in t), default=0)
    return path.stat().st_size == 8 + int(header["size"]) + end


def _parameters(folder: Path) -> int:
    tensors = (tensor for path in folder.glob("*.safetensors") for tensor in _header(path).values())
    return sum(math.prod(tensor["shape"]) for tensor in tensors if isinstance(tensor, dict) and "shape" in tensor)


def _skipped(path: Path) -> bool:
    return path.name.startswith(".") or path.suffix in (".bin", ".pt", ".pth", ".md", ".gguf")


STAGE = Stage(
    Settings, run, version=1, inputs={"data": "optional"}, seeded=True, runtime=Runtime, files=files, check=check,
    cost=lambda settings: Cost(weights=1))
