"""Plain folders made of other forms of a model: a GGUF file, dequantised, and an adapter, merged on its base."""

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

from pipeline import clock
from pipeline.errors import UserError, one_line
from pipeline.lm import checks, folders
from pipeline.source import ADAPTER

_CPU = torch.device("cpu")
_TEXTS = ("The capital of France is Paris.", "  two  spaces\n\n\ttab", "naïve café, 日本語 🦆", "x = f(1) + 23;")
_ADDS_BOS = "tokenizer.ggml.add_bos_token"


@clock.spending(clock.LOAD)
def from_gguf(file: Path, target: Path) -> None:
    """Write the model of a GGUF file as a float32 folder with its tokenizer, and its chat template where it has one.

    What is quantised comes back as the float32 numbers it stands for. Raises UserError where transformers cannot.
    """
    folders.quiet()
    options = {"gguf_file": file.name}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **options)
        read = transformers.AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise UserError(f"model.path: {file}: transformers cannot read it ({one_line(error)}); take the model's "
                        "safetensors folder") from None
    config = read.config
    del config.quantization_config  # of the file; a model that carries it cannot be saved
    plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(target)
    if _adds_bos(file):
        _begin_with_bos(tokenizer)
    tokenizer.save_pretrained(target)


def _adds_bos(file: Path) -> bool:
    from gguf import GGUFReader

    field = GGUFReader(file).get_field(_ADDS_BOS)
    return field is not None and bool(field.contents())


def _begin_with_bos(tokenizer: Any) -> None:
    """Plain text then begins with <bos>, as in the model's own tokenizer: transformers drops that from a GGUF file."""
    from tokenizers.processors import TemplateProcessing

    bos = tokenizer.bos_token
    if tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_token_id)])


def merged(adapter: Path, base: Path, target: Path) -> None:
    """Write the model of `base` with the LoRA adapter of a folder added into its weights, float32.

    The tokenizer is the adapter's where it brings one. Raises UserError where the adapter does not fit, and where the
    merged folder, loaded again, is not the model that base and adapter are: a head tied to the embedding, say.
    """
    from pipeline.lm import adapters, round_trip

    folders.quiet()
    own = adapter if (adapter / "tokenizer_config.json").is_file() else base
    model = folders.load_policy(base, _CPU)
    rows, tokens = model.get_input_embeddings().weight.shape[0], len(folders.load_tokenizer(own))
    if own == adapter and tokens > rows:
        model.resize_token_embeddings(tokens)
    try:
        model = adapters.put_on(model, adapter)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"model.path: {adapter}: the adapter does not fit {base} ({one_line(error)}); name the model "
                        "that it was trained on: model.base=DIR") from None
    given = round_trip.examples(own)
    apart = round_trip.own_logps(model.eval(), given)
    folders.copy_side_files(base, target)
    if own == adapter:
        for path in checks.side_files(adapter):
            if path.name != ADAPTER:
                shutil.copyfile(path, target / path.name)
    model.merge_and_unload().save_pretrained(target)
    again = folders.load_policy(target, _CPU)
    round_trip.same_logprobs(apart, round_trip.own_logps(again, given), f"model.path: {adapter}: merged on {base}, "
                             "saved and loaded, against base and adapter apart")


def fast_tokenizer(folder: Path, target: Path) -> None:
    """Write tokenizer.json, which every engine reads, for a folder with another form of its tokenizer.

    Raises UserError where it does not give the same ids.
    """
    tokenizer = folders.load_tokenizer(folder)
    tokenizer.backend_tokenizer.save(str(target / "tokenizer.json"))
    again = folders.load_tokenizer(target)
    if [tokenizer(text)["input_ids"] for text in _TEXTS] != [again(text)["input_ids"] for text in _TEXTS]:
        raise UserError(f"model.path: {folder}: its tokenizer, written as tokenizer.json, gives other ids; save it "
                        "with transformers' save_pretrained and compare")
