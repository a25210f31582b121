"""What can be wrong with the files of a model folder, found without torch or transformers and without reading a weight.

Messages say what is wrong and the way out; `acceptance` sets the setting and the folder before them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import weights
from pipeline.errors import first
from pipeline.lm.template_check import NO_TEMPLATE
from pipeline.source import ADAPTER

GENERATION = "generation_config.json"
_JSON = ("config.json", GENERATION, "tokenizer_config.json", "special_tokens_map.json", ADAPTER, weights.INDEX)
_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"), ("tekken.json",))
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_UNUSED = (*_PICKLES, ".py", ".md", ".gguf", ".h5", ".msgpack", ".onnx")
_POINTER = b"version https://git-lfs"
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Folder:
    """A model folder as far as it is here: of a model on the hub, the weights are known by name and size only."""

    path: Path
    sizes: Mapping[str, int]  # bytes of every file at its top
    here: bool = True  # whether the weights are

    @classmethod
    def of(cls, path: Path) -> Folder:
        return cls(path, {file.name: file.stat().st_size for file in path.iterdir() if file.is_file()})


def side_files(path: Path) -> list[Path]:
    """What is taken of a folder beside its weights: files at its top, without pickles and what nothing here reads."""
    return [file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith(".")
            and file.suffix not in (*_UNUSED, ".safetensors") and file.name != weights.INDEX]


def problems(folder: Folder, template_given: bool = False) -> list[str]:
    """Everything wrong with the files; the first things of each kind are named."""
    if "config.json" not in folder.sizes and (files := [n for n in folder.sizes if n.endswith(".gguf")]):
        return [f"a folder of GGUF files; give the path of one: {', '.join(first(sorted(files), 5))}"]
    if "config.json" not in folder.sizes and ADAPTER in folder.sizes and not folder.here:
        base = _json_files(folder.path)[0].get(ADAPTER, {}).get("base_model_name_or_path")
        return [f"an adapter of {base!r}; fetch it (hf download ORG/NAME --local-dir DIR) and give its folder and the "
                "model it is merged on: model.path=DIR model.base=org/name"]
    found = links(folder.path) + _pointers(folder.path)
    read, unreadable = _json_files(folder.path)
    found += unreadable
    if "config.json" not in folder.sizes:
        found.append("no config.json, expected the folder that save_pretrained writes")
    found += _quantised(read.get("config.json", {}))
    found += _tokenizer(folder.sizes) + ([] if template_given else _template(folder.path, read))
    if not found or not any("git-lfs" in problem for problem in found):
        found += _weights(folder, read.get(weights.INDEX))
    return found


def small_files_whole(folder: Folder) -> bool:
    """Whether configuration and tokenizer can be looked at further: what is wrong with their bytes is told already."""
    return "config.json" in folder.sizes and not _json_files(folder.path)[1] and not any(
        not name.endswith(".safetensors") for name in _pointer_names(folder.path))


def links(path: Path) -> list[str]:
    """A link out of the folder would carry another file into the store, and with an export to others."""
    blobs = path.resolve().parent.parent / "blobs"  # where the hub's cache keeps what its snapshots link to
    own = [path.resolve(), *([blobs] if path.resolve().parent.name == "snapshots" else [])]
    out = [file.name for file in sorted(path.iterdir()) if file.is_symlink()
           and not any(place in file.resolve().parents for place in own)]
    return [f"{name} is a link that leads out of the folder ({(path / name).resolve()}); put a copy there"
            for name in out]


def _pointer_names(path: Path) -> list[str]:
    return [file.name for file in sorted(path.iterdir())
            if file.is_file() and file.stat().st_size < 1024 and file.read_bytes().startswith(_POINTER)]


def _pointers(path: Path) -> list[str]:
    found = _pointer_names(path)
    return [f"{', '.join(first(found, 5))}: a git-lfs pointer instead of the file; run `git lfs pull` in the folder"
            ] if found else []


def _json_files(path: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    read, found = dict[str, dict[str, Any]](), list[str]()
    for name in _JSON:
        if not (path / name).is_file() or (path / name).read_bytes().startswith(_POINTER):
            continue
        try:
            content = json.loads((path / name).read_text())
        except ValueError as error:
            found.append(f"{name} is not valid JSON ({error}); copy it again")
            continue
        if isinstance(content, dict):
            read[name] = content
        else:
            found.append(f"{name} holds a {type(content).__name__}, expected a mapping; copy it again")
    return read, found


def _quantised(config: Mapping[str, Any]) -> list[str]:
    quantised = config.get("quantization_config")
    if not quantised:
        return []
    kind = quantised.get("quant_method", "unknown kind") if isinstance(quantised, dict) else "unknown kind"
    return [f"its weights are quantised ({kind}), which cannot be trained or saved as trained; take the model it was "
            "made from (trainer.adapter.kind=qlora quantises that itself)"]


def has_tokenizer(names: Collection[str]) -> bool:
    """Whether files of these names hold a tokenizer."""
    return any(all(name in names for name in wanted) for wanted in _TOKENIZERS)


def _tokenizer(sizes: Mapping[str, int]) -> list[str]:
    if has_tokenizer(sizes):
        return []
    wanted = ", ".join(" + ".join(names) for names in _TOKENIZERS[:3])
    return [f"no tokenizer, expected one of {wanted}; copy the tokenizer files of the model it was trained from"]


def _template(path: Path, read: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if any((path / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return []
    if read.get("tokenizer_config.json", {}).get("chat_template"):
        return []
    return [NO_TEMPLATE]


def _weights(folder: Folder, index: Mapping[str, Any] | None) -> list[str]:
    names = sorted(name for name in folder.sizes if name.endswith(".safetensors"))
    if not names:
        old = any(name.endswith(_PICKLES) for name in folder.sizes)
        return ["no *.safetensors weights" + ("; there are pickled ones, which are not read: load the model and "
                "save_pretrained it again, where you would run a program of its maker" if old else ", expected a file")]
    if index is not None and not (isinstance(index.get("weight_map"), dict) and index["weight_map"]):
        return [f"{weights.INDEX} has no weight_map; copy it again"]
    if index is not None and not isinstance(index.get("metadata"), dict):
        return [f'{weights.INDEX} has no metadata, without which transformers does not read it; copy it again, or '
                'write "metadata": {} into it']
    if "model.safetensors" not in names and index is None:
        return [f"{', '.join(first(names, 3))} without {weights.INDEX}, which says what is where; copy it too"]
    if "model.safetensors" in names or index is None:
        return _tensors(folder, ["model.safetensors"], None)
    wanted = sorted(set(index["weight_map"].values()))
    if missing := [name for name in wanted if name not in folder.sizes]:
        return [f"{', '.join(first(missing, 5))} missing, {weights.INDEX} names {len(wanted)} files; copy "
                f"{'it' if len(missing) == 1 else 'them'} too"]
    return _tensors(folder, wanted, index["weight_map"])


def unreadable(path: Path) -> str:
    """What is wrong with a safetensors file by its header; '' where nothing is."""
    try:
        weights.header(path)
    except ValueError as error:
        return f"{path.name} is cut short or no safetensors file ({error}); copy it again"
    return ""


def _tensors(folder: Folder, names: list[str], placed: Mapping[str, str] | None) -> list[str]:
    """What the headers say against the index, and of the weights' kind."""
    if not folder.here:
        return []
    found, kinds = list[str](), set[str]()
    for name in names:
        if fault := unreadable(folder.path / name):
            found.append(fault)
            continue
        header = weights.header(folder.path / name)
        kinds |= {tensor["dtype"] for tensor in header.values()}
        if lost := [key for key, file in (placed or {}).items() if file == name and key not in header]:
            found.append(f"{name} lacks {', '.join(first(lost, 3))}, which {weights.INDEX} promises there; copy both "
                         "from one place")
    if strange := sorted(kinds - {*_FLOATS, "I64", "BOOL"}):
        found.append(f"weights of type {', '.join(strange)}: quantised, which cannot be trained; take the model it was "
                     "made from")
    return found
