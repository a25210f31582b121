"""Low-rank adapters through peft: put into the model in place, saved beside it, merged on export.

The layers are put into the Hugging Face model itself, without peft's wrapper around it, so everything else sees the
model it knows. With the adapter off the model is the base it started from: the reference of a policy trained so.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import UserError
from pipeline.lm import folders
from pipeline.lm.settings import AdapterSettings
from pipeline.source import ADAPTER_WEIGHTS

_PREFIX = "base_model.model."  # what peft's own loader expects in front of every name


def require(settings: AdapterSettings, device: torch.device) -> None:
    """Raises UserError where 4-bit weights cannot be had."""
    if settings.kind != "qlora":
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("trainer.adapter.kind: qlora needs the package bitsandbytes, which is not installed; "
                        "pip install 'alignloop[qlora]' or set trainer.adapter.kind=lora")
    if device.type not in ("cuda", "cpu"):
        raise UserError(f"trainer.adapter.kind: qlora runs on cuda and cpu, but the device is {device.type}; "
                        "set trainer.adapter.kind=lora")


def quantisation(settings: AdapterSettings, precision: str) -> dict[str, Any]:
    """How the base is loaded: 4-bit normal floats for qlora (Dettmers et al. 2023), multiplied in `precision`; as ever
    otherwise.
    """
    if settings.kind != "qlora":
        return {}
    return {"quantization_config": transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, precision))}


def base(settings: AdapterSettings, precision: str, device: torch.device) -> dict[str, Any]:
    """How the weights that training starts from are loaded: those an adapter learns over stay frozen."""
    return {**(folders.frozen(device, precision) if settings.on else {}), **quantisation(settings, precision)}


def add(model: Any, settings: AdapterSettings, seed: int, whole: tuple[str, ...] = ()) -> None:
    """Freeze `model` and add adapters that start as no change, drawn from `seed`. Modules `whole` learn altogether."""
    every = settings.target_modules == ("all-linear",)
    targets: Any = "all-linear" if every else list(settings.target_modules)
    config = peft.LoraConfig(r=settings.r, lora_alpha=settings.alpha, lora_dropout=settings.dropout,
                             target_modules=targets, modules_to_save=list(whole) or None, base_model_name_or_path=None)
    _refuse_tied(model, settings)
    torch.manual_seed(seed)
    try:
        peft.inject_adapter_in_model(config, model)
    except ValueError as error:
        raise UserError(f"trainer.adapter.target_modules: {list(settings.target_modules)} fits no layer of "
                        f"{type(model).__name__}; expected names of its linear layers or [all-linear] "
                        f"({str(error).splitlines()[0]})") from None
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.float()


def _refuse_tied(model: Any, settings: AdapterSettings) -> None:
    """Raises UserError where the adapter would sit on the embedding or the head of a model that has one matrix for
    both: trained it changes one of them, merged it would change both.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if module in (head, embedding)}
    if named := [target for target in settings.target_modules if target.rpartition(".")[2] in names]:
        raise UserError(f"trainer.adapter.target_modules: {', '.join(named)}: this model's embedding and head are one "
                        "matrix (tie_word_embeddings), so what an adapter learns for one would be merged into both; "
                        "leave it out ([all-linear] does), or start from a model whose head is a matrix of its own")


def save(model: Any, trained: dict[str, Tensor], folder: Path) -> None:
    """Write the adapter as peft does. `trained` are the trained parameters, whole, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = peft.get_peft_model_state_dict(model, state_dict=trained)
    save_file({f"{_PREFIX}{name}": t for name, t in tensors.items()}, folder / ADAPTER_WEIGHTS)
    model.peft_config["default"].save_pretrained(folder)


def put_on(base: Any, folder: Path) -> Any:
    """`base` with the adapter of `folder`, which stays apart from its weights."""
    return peft.PeftModel.from_pretrained(base, str(folder))


def merged(base: Any, folder: Path) -> Any:
    """`base` in float32 with the adapter of `folder` added into its weights: a plain model again."""
    return put_on(base, folder).merge_and_unload()


@contextmanager
def off(model: Any) -> Iterator[None]:
    """The base model, for as long as the context lasts."""
    layers = [m for m in model.modules() if isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
