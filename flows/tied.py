"""Adapters on the embedding or the head of a model that has one matrix for both: refused before anything is trained."""

import json
from pathlib import Path
from typing import Any

from pipeline import weights

_HEADS, _EMBEDDINGS = {"lm_head", "embed_out"}, {"embed_tokens", "word_embeddings", "wte", "embed_in"}


def tied_layers(config: dict[str, Any]) -> list[str]:
    """One for each language model's trainer whose adapter names a tied layer. What the folder does not show (it is
    elsewhere, its layers have other names) is refused where the adapter is put in (lm/adapters).
    """
    named = {name: _named(config["trainer"][name]["adapter"]) for name in ("sft", "preference")}
    if not any(named.values()) or not _tied(config["model"]):
        return []
    return [f"trainer.{name}.adapter.target_modules: {', '.join(layers)}: this model's embedding and head are one "
            "matrix, so what an adapter learns for one would be merged into both; leave it out ([all-linear] does), or "
            "start from a model whose head is a matrix of its own" for name, layers in named.items() if layers]


def _named(adapter: Any) -> list[str]:
    """The layers that may be tied. A block that is wrong is told of by who builds it."""
    if not isinstance(adapter, dict) or adapter["kind"] == "none" or not isinstance(adapter["target_modules"], list):
        return []
    return [name for name in adapter["target_modules"] if name in _HEADS | _EMBEDDINGS]


def _tied(model: dict[str, Any]) -> bool:
    """Whether embedding and head are one matrix: by the model's configuration, else by the names of its weights."""
    if model.get("path") is None:
        return bool((model.get("arch") or {}).get("tie_embeddings"))
    folder = Path(str(model["path"]))
    try:
        config = json.loads((folder / "config.json").read_text())
        said = config.get("tie_word_embeddings", (config.get("text_config") or {}).get("tie_word_embeddings"))
        if said is not None:
            return bool(said)
        return not any(_HEADS & set(name.split(".")) for name in weights.tensors(folder))
    except (OSError, ValueError):  # what is wrong with the folder is said elsewhere
        return False
