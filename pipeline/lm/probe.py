"""What transformers makes of a model folder, found in a process of its own: `python -m pipeline.lm.probe FOLDER`.

It looks at configuration and tokenizer, never at weights, and hides torch from transformers: without it transformers is
imported in one second instead of three. Prints a JSON list of problems as its last line.
"""

import ast
import importlib.util
import json
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline import gguf_header, weights
from pipeline.engines.engine import steady_positions, usable_positions
from pipeline.errors import UserError, first, nearest, one_line
from pipeline.lm import checks, shapes
from pipeline.lm.template import turn_end_id
from pipeline.lm.template_check import NO_TEMPLATE, template_problems

_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")  # as families call it
_DTYPES = ("auto", "float64", "float32", "float16", "bfloat16")
# Named in a tokenizer's configuration for inputs that a text model does not take: no text becomes one of them.
_OF_OTHER_INPUTS = ("image_token", "boi_token", "eoi_token", "audio_token", "boa_token", "eoa_token", "video_token")


def problems(folder: Path, reward: bool, template: str | None = None, longest: int = 0) -> list[str]:
    """Everything wrong with configuration and tokenizer. reward: whether a reward model is to be trained on it;
    template: the chosen one, None: the tokenizer's own; longest: tokens of prompt and completion together.
    """
    config, found = _config(folder)
    if config is not None:
        found = _family(config, reward) + _context(config, longest) + _rows(config, folder) + _words(config, folder)
    tokenizer, unreadable = _tokenizer(folder)
    found += unreadable
    if tokenizer is None:
        return found
    if template is not None:
        try:
            tokenizer.chat_template = shapes.named(template, tokenizer)
        except UserError as error:
            return found + error.problems
    stops, unclear = _stops(tokenizer, config, folder)
    found += unclear
    rows = None if config is None else config.get_text_config().vocab_size
    return found + ([] if rows is None else _ids(tokenizer, config, stops, rows, folder))


def _config(folder: Path) -> tuple[Any, list[str]]:
    import transformers
    from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES

    read = json.loads((folder / "config.json").read_text())
    kind = read.get("model_type")
    if kind not in CONFIG_MAPPING_NAMES and "auto_map" in read:
        return None, [f"model_type {kind!r} needs code that comes with it (auto_map in config.json), which is never "
                      f"run; take a model of a family that transformers {transformers.__version__} knows"]
    if kind is None:
        return None, ["config.json has no model_type, which says what family it is of; copy it again"]
    if kind not in CONFIG_MAPPING_NAMES:
        return None, [f"transformers {transformers.__version__} knows no model_type {kind!r} (config.json); take a "
                      "model of a family that it knows, or a version of alignloop with a newer transformers"]
    try:
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True), []
    except Exception as error:  # whatever the library's own checks raise
        return None, [f"transformers cannot read config.json ({one_line(error)}); copy it again"]


def _family(config: Any, reward: bool) -> list[str]:
    kind, found = config.model_type, list[str]()
    text = config.get_text_config()
    if kind not in _classes("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"):
        return [f"a {kind} is no causal language model, expected one (a decoder that continues text)"]
    if getattr(text, "is_decoder", True) is False and kind in _classes("MODEL_FOR_MASKED_LM_MAPPING_NAMES"):
        return [f"a {kind} whose config.json says is_decoder=false reads both ways, expected a decoder that continues "
                "text; take another family"]
    if not isinstance(getattr(text, "max_position_embeddings", None), int):
        found.append(f"a {kind} has no context length in its configuration: families without positions (state-space "
                     "models) are not trained here; take a transformer")
    if reward and not {kind, text.model_type} & _classes("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES").keys():
        found.append(f"transformers has no sequence classifier for {kind}, so no reward model can be trained on it; "
                     "choose another scorer (reward=implicit), a trained one (reward.path=DIR), or another model")
    return found


def _words(config: Any, folder: Path) -> list[str]:
    """Words of config.json that transformers looks up when it builds the model."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    text, read = config.get_text_config().to_dict(), json.loads((folder / "config.json").read_text())
    rope = text.get("rope_parameters") or {}
    ropes = [one.get("rope_type", "default") for one in (rope, *rope.values()) if isinstance(one, dict)]
    activations = _table("activations.py", "ACT2CLS")
    asked = [*((key, text.get(key), activations) for key in _ACTIVATIONS),
             *(("rope_type", name, [*ROPE_INIT_FUNCTIONS, "default"]) for name in dict.fromkeys(ropes)),
             *((key, read.get(key), _DTYPES) for key in ("dtype", "torch_dtype"))]
    return [f"config.json says {key} {word!r}, which transformers does not know{nearest(word, known)}; correct it, or "
            "take the file from where the weights are from"
            for key, word, known in asked if isinstance(word, str) and word not in known]


def _context(config: Any, longest: int) -> list[str]:
    """Rows longer than the model's positions: every later step would refuse them."""
    text = config.get_text_config()
    said = {**text.to_dict(), "max_position_embeddings": getattr(text, "max_position_embeddings", None)}
    room = usable_positions(said)
    if room is None or longest <= room:
        return []
    kind = ("the length of its pretraining, beyond which LongRoPE is another model" if room == steady_positions(said)
            else "its context")
    return [f"model.max_prompt_tokens: with model.max_completion_tokens {longest} tokens, the model has {room} "
            f"({kind}); lower them: model.max_prompt_tokens={room // 2} model.max_completion_tokens={room - room // 2}"]


def _rows(config: Any, folder: Path) -> list[str]:
    """The embedding's rows by its weights, where they are here, against config.json."""
    said, held = getattr(config.get_text_config(), "vocab_size", None), weights.rows(folder)
    return [] if held in (None, said) else [
        f"config.json says vocab_size {said}, the embedding has {held} rows; correct vocab_size, or take both files "
        "from one place"]


def _classes(name: str) -> dict[str, Any]:
    """One of transformers' tables of model type -> class."""
    node = _assigned("models/auto/modeling_auto.py", name)
    assert isinstance(node, ast.Call)
    return dict(ast.literal_eval(node.args[0]))


def _table(file: str, name: str) -> list[str]:
    """The keys of a table of transformers."""
    node = _assigned(file, name)
    assert isinstance(node, ast.Dict)
    return [ast.literal_eval(key) for key in node.keys if key is not None]


def _assigned(file: str, name: str) -> ast.expr:
    """What a name of transformers is, read from its source: importing it would import torch."""
    (place,) = importlib.util.find_spec("transformers").submodule_search_locations  # type: ignore[union-attr, misc]
    for node in ast.parse((Path(place) / file).read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return node.value
    raise KeyError(name)


def _tokenizer(folder: Path) -> tuple[Any, list[str]]:
    import transformers

    if not checks.has_tokenizer([path.name for path in folder.iterdir()]):
        return None, []  # told by the check of the files
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a broken file, an unknown class, code of its own ...
        return None, [f"transformers cannot load its tokenizer ({type(error).__name__}: {one_line(error)}); copy the "
                      "tokenizer files of the model it was trained from"]
    if not tokenizer.is_fast:
        return None, [f"its tokenizer ({type(tokenizer).__name__}) has no tokenizer.json form, which every engine "
                      "needs; take a model of a family that has one"]
    return tokenizer, []


def _stops(tokenizer: Any, config: Any, folder: Path) -> tuple[list[int], list[str]]:
    """Every id that can end an answer, as init_model will list them."""
    if tokenizer.chat_template is None:
        return [], []  # told by the check of the files
    if unfit := template_problems(tokenizer):
        return [], unfit
    stops = stop_candidates(folder, tokenizer, turn_end_id(tokenizer))
    if odd := [one for one in stops if not isinstance(one, int)]:
        ids = tokenizer.convert_tokens_to_ids(odd) if all(isinstance(one, str) for one in odd) else "ID, or [ID, ID]"
        return [], [f"eos_token_id of {checks.GENERATION} has {', '.join(map(repr, odd))}, expected an id or a list of "
                    f"ids: {ids}"]
    if not stops:
        return [], ["no id ends an answer: generation_config.json and the tokenizer name no EOS and the chat template "
                    "ends a turn with plain text; set eos_token in tokenizer_config.json"]
    return stops, template_problems(tokenizer, tuple(stops))


def stop_candidates(folder: Path, tokenizer: Any, turn_end: int | None) -> list[int]:
    """generation_config.json's EOS, the tokenizer's, and what the template ends a turn with; each once, in order."""
    path = folder / checks.GENERATION
    listed = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
    candidates = [*(listed if isinstance(listed, list) else [listed]), tokenizer.eos_token_id, turn_end]
    return [one for i, one in enumerate(candidates) if one is not None and one not in candidates[:i]]


def _ids(tokenizer: Any, config: Any, stops: Iterable[int], rows: int, folder: Path) -> list[str]:
    """Ids that the embedding has no row for: they would end a training run, or read past the weights."""
    vocabulary = tokenizer.get_vocab()
    path = folder / "tokenizer_config.json"
    named = json.loads(path.read_text()) if path.is_file() else {}
    free = {str(named[key]) for key in _OF_OTHER_INPUTS if key in named}
    beyond = sorted((i, token) for token, i in vocabulary.items() if i >= rows and token not in free)
    if beyond:
        size, shown = len(vocabulary), first([f"{token!r} ({i})" for i, token in beyond], 4)
        added = len(beyond) <= len(tokenizer.get_added_vocab())
        why = "tokens were added and the embedding was not resized" if added else "the tokenizer is another model's"
        return [f"the tokenizer has {size} tokens up to id {beyond[-1][0]}, the embedding {rows} rows ({why}): no row "
                f"for {', '.join(shown)}; " + ("take them out of the tokenizer's files (pad_token may name the EOS "
                f"token), or give them rows: resize_token_embeddings({beyond[-1][0] + 1}) and save_pretrained" if added
                else "copy the tokenizer files of the model it was trained from")]
    if 2 * len(vocabulary) < rows:
        return [f"the tokenizer has {len(vocabulary)} tokens, the embedding {rows} rows: the tokenizer is another "
                "model's; copy the tokenizer files of the model it was trained from"]
    found = [f"id {i} ends an answer by generation_config.json, the embedding has {rows} rows; correct eos_token_id"
             for i in stops if not 0 <= i < rows]
    pad = config.get_text_config().pad_token_id
    if pad is not None and pad >= rows:
        found.append(f"pad_token_id of config.json is {pad}, the embedding has {rows} rows; set it to null")
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        found.append("the tokenizer has neither a pad nor an EOS token; set eos_token in tokenizer_config.json")
    return found


def gguf_problems(file: Path, template_given: bool = False) -> list[str]:
    """Everything wrong with a GGUF file that its header tells."""
    try:
        import gguf  # noqa: F401  # what a run will read the weights with
    except ImportError:
        return ["reading a GGUF file needs the package gguf: pip install 'alignloop[gguf]'"]
    try:
        header = gguf_header.read(file)
    except (ValueError, struct.error, MemoryError, OverflowError) as error:
        return [f"no GGUF file that can be read ({one_line(error)}); copy it again, or take the safetensors folder"]
    return _gguf_types(file, header) + _gguf_fields(header, template_given)


def _gguf_types(file: Path, header: gguf_header.Header) -> list[str]:
    """Kinds of weights that cannot be read, and a file that ends before they do."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    odd, end = set[str](), header.start
    for tensor in header.tensors:
        try:
            kind = GGMLQuantizationType(tensor.type)
        except ValueError:
            odd.add(f"number {tensor.type}")
            continue
        each, size = GGML_QUANT_SIZES[kind]
        end = max(end, header.start + tensor.offset + tensor.weights // each * size)
        try:
            dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            odd.add(kind.name)
    found = [f"weights of type {', '.join(sorted(odd))} cannot be read; take a file of another type (Q8_0, F16), or "
             "the safetensors folder"] if odd else []
    held = file.stat().st_size
    return found + ([f"it is cut short: {held} bytes, its header promises {end}; copy it again"] if held < end else [])


def _gguf_fields(header: gguf_header.Header, template_given: bool) -> list[str]:
    from jinja2 import TemplateSyntaxError
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES
    from transformers.utils.chat_template_utils import _compile_jinja_template

    name, template = header.texts.get("general.architecture", ""), header.texts.get("tokenizer.chat_template")
    known = {one.replace("_", "") for one in GGUF_SUPPORTED_ARCHITECTURES}
    found = [] if name.translate({ord("_"): "", ord("-"): ""}) in known else [
        f"architecture {name!r} is not one that transformers reads from GGUF files; take the safetensors folder"]
    if template_given:
        return found
    if template is None:
        return [*found, NO_TEMPLATE]
    try:
        _compile_jinja_template(template)
    except TemplateSyntaxError as error:
        found.append(f"its chat template is no Jinja template (line {error.lineno}: {one_line(error)}); give one: "
                     "model.chat_template=FILE")
    return found


def main() -> int:
    sys.modules["torch"] = None  # type: ignore[assignment]
    import transformers

    transformers.utils.logging.set_verbosity_error()
    wanted = json.loads(sys.argv[1])
    place = Path(wanted["place"])
    template = wanted["template"]
    print(json.dumps(gguf_problems(place, template is not None) if place.is_file() else problems(
        place, wanted["reward"], template, wanted["longest"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
