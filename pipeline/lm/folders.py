"""Hugging Face folders in and out: float32 masters in, a plain folder anyone can load out."""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from pipeline import clock
from pipeline.engines.engine import model_facts, usable_positions
from pipeline.errors import UserError, first
from pipeline.lm import attention, devices, forward, rope
from pipeline.lm.settings import THIS_MACHINE, ModelRuntime
from pipeline.lm.template import Encoder
from pipeline.weights import outputs

_MEMORY = ("every weight takes 4 bytes; choose a smaller model, set the stage's trainer.adapter.kind=qlora (4-bit "
           "weights), or hardware.training.device=cpu where that has more memory")
_HEADS = ("score.", "v_head.")  # of rewards and values, beside a language model that is whole without them
_MASKS = (".attn.bias", ".attention.bias", ".masked_bias", ".causal_mask")  # buffers in GPT-2's and GPT-Neo's old files
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json")


def prepare_machine(runtime: ModelRuntime) -> torch.device:
    """Fix the thread count and choose the device. Raises UserError where cuda was asked for and is not there."""
    quiet()
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise UserError("runtime.device: cuda, but torch sees no CUDA device here; use hardware=cpu, or make it see "
                        f"one: {devices.why_none()}")
    wanted = "cuda" if runtime.device == "auto" and torch.cuda.is_available() else runtime.device
    if wanted == "cuda" and not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & set(os.environ):
        # Read when the device is first used; micro-batches of many lengths leave fewer gaps.
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    return torch.device("cpu" if wanted == "auto" else wanted)


def quiet() -> None:
    """Keep transformers' bars and remarks out of the stage's log; what matters is checked and said by the stage."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@clock.spending(clock.LOAD)
def load_policy(
    folder: Path, device: torch.device, runtime: ModelRuntime | None = None, options: dict[str, Any] | None = None
) -> Any:
    """A causal LM with float32 weights (4-bit ones where `options` say so) and every dropout off, on `device`."""
    model, found = _loaded(transformers.AutoModelForCausalLM, folder, device, runtime, output_loading_info=True,
                           **(options or {}))
    cut = "config" in (options or {})  # of a model cut to its first layers, the others stay in the file
    if problems := _lacking(found) + ([] if cut else _left_over(found)):
        raise UserError(*(f"{folder}: {problem}" for problem in problems))
    return _ready(model, runtime)


def misfits(folder: Path) -> list[str]:
    """Weights that a language model's folder lacks, has beyond its configuration, or in another shape than that asks.

    By the headers, as transformers itself matches names: no weight is read, so it takes a second at any size.
    """
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, device_map="meta", use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True)
    found = loaded[1]
    return [*_lacking(found), *_left_over(found), *(
        f"its weights have {name} as {list(held)}, config.json asks for {list(wanted)}; take both files from one place"
        for name, held, wanted in sorted(found["mismatched_keys"]))]


def _lacking(found: dict[str, Any]) -> list[str]:
    names = ", ".join(first(sorted(found["missing_keys"]), 4))
    return [f"its weights lack {names}, which would start as random numbers; copy it again"] if names else []


def _left_over(found: dict[str, Any]) -> list[str]:
    """What transformers would drop in silence; most of what is harmless it has taken out already."""
    left = sorted(n for n in found["unexpected_keys"] if not n.startswith(_HEADS) and not n.endswith(_MASKS))
    return [f"its weights have {', '.join(first(left, 4))}, for which config.json has no place, so they would be "
            "dropped; take both files from one place"] if left else []


@clock.spending(clock.LOAD)
def load_from_disk(folder: Path, scratch: Path) -> Any:
    """A causal LM whose weights are read from the folder layer by layer in each forward pass: for one pass of a large
    one. scratch: a folder for what has to be written again, which mostly is nothing.
    """
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    layers = max(lists, key=lambda module: sum(weights.numel() for weights in module.parameters()))
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, device_map=_places(model, layers), offload_folder=scratch, use_safetensors=True, dtype="auto").eval()


def _places(module: torch.nn.Module, layers: torch.nn.Module, name: str = "") -> dict[str, str]:
    """Name of a module -> "disk" for `layers`, "cpu" for what stands beside it."""
    if module is layers or all(inner is not layers for inner in module.modules()):
        return {name: "disk" if module is layers else "cpu"}
    return {place: where for child, inner in module.named_children()
            for place, where in _places(inner, layers, f"{name}.{child}".lstrip(".")).items()}


@clock.spending(clock.LOAD)
def load_reward(
    folder: Path, device: torch.device, seed: int, pad: int, runtime: ModelRuntime | None = None,
    options: dict[str, Any] | None = None,
) -> Any:
    """A one-score sequence classifier on the weights of `folder`; a head that is not there yet is drawn from `seed`."""
    torch.manual_seed(seed)
    model, found = _loaded(transformers.AutoModelForSequenceClassification, folder, device, runtime, num_labels=1,
                           pad_token_id=pad, output_loading_info=True, **(options or {}))
    if device.type != "cpu":  # another generator than the CPU's would make another head under the same key
        drawn = first_head(model, seed)
        for name in found["missing_keys"]:
            model.get_parameter(name).data.copy_(drawn)
    return _ready(model, runtime)


def first_head(model: Any, seed: int) -> torch.Tensor:
    """(1, H) float32 on the CPU, as transformers draws a head of one score there."""
    torch.manual_seed(seed)
    config = model.config.get_text_config()
    return torch.empty(1, config.hidden_size).normal_(0.0, config.initializer_range)


def frozen(device: torch.device, precision: str) -> dict[str, Any]:
    """How weights are loaded that nothing trains: on CUDA in the precision of the products, as memory is what lacks
    there; as ever on a CPU.
    """
    return {"dtype": torch.bfloat16} if device.type == "cuda" and precision == "bfloat16" else {}


@clock.spending(clock.LOAD)
def load_scorer(folder: Path, device: torch.device, runtime: ModelRuntime | None = None,
                mix: Sequence[float] = (1.0,), options: dict[str, Any] | None = None) -> Any:
    """A trained classifier as it scores: in evaluation mode, with one output, the sum of its own with these weights.

    The number of outputs is that of the head in the file. Raises UserError for a folder that is no reward model:
    another number of outputs than weights given, or a head without trained weights.
    """
    labels = outputs(folder) or transformers.AutoConfig.from_pretrained(folder).num_labels
    if labels != len(mix):
        raise UserError(f"reward: the model in {folder} has {labels} outputs, expected "
                        f"{'one (a scalar reward model)' if len(mix) == 1 else len(mix)}; with several, reward=heads "
                        "takes a weight for each")
    model, found = _loaded(transformers.AutoModelForSequenceClassification, folder, device, runtime,
                           output_loading_info=True, num_labels=labels, **(options or {}))
    if found["missing_keys"]:  # a language model's folder loads too, with a head of random numbers
        missing = ", ".join(sorted(found["missing_keys"]))
        raise UserError(f"reward: {folder} is no trained reward model, these weights are missing: {missing}")
    return (model if labels == 1 else _mixed(model, mix)).eval()


@torch.no_grad()
def _mixed(model: Any, mix: Sequence[float]) -> Any:
    """Its last layer is linear: the weighted sum of its outputs is one output, of the weighted sum of their weights."""
    name, head = [(n, m) for n, m in model.named_modules()
                  if isinstance(m, torch.nn.Linear) and m.out_features == len(mix)][-1]
    shares = torch.tensor([mix], dtype=head.weight.dtype, device=head.weight.device)
    one = torch.nn.Linear(head.in_features, 1, bias=head.bias is not None).to(head.weight)
    one.weight.copy_(shares @ head.weight)
    if head.bias is not None:
        one.bias.copy_(shares @ head.bias)
    model.set_submodule(name, one)
    model.config.num_labels = model.num_labels = 1
    return model


def _loaded(kind: Any, folder: Path, device: torch.device, runtime: ModelRuntime | None, **options: Any) -> Any:
    """What `from_pretrained` gives, with the attention of the runtime where that computes this model; the log says so
    where it does not.
    """
    asked, report = (runtime or THIS_MACHINE).attention, bool(options.pop("output_loading_info", False))
    found: dict[str, Any] = {}
    state = torch.get_rng_state()

    def load(name: str) -> Any:
        torch.set_rng_state(state)  # a second try draws the head of a reward model as the first one did
        model, info = kind.from_pretrained(folder, output_loading_info=True, **{
            "dtype": torch.float32, "device_map": {"": device}, "use_safetensors": True, "attn_implementation": name,
            "trust_remote_code": False, **options})
        found.update(info)
        return model

    with forward.enough_memory(f"while loading {folder}", _MEMORY):
        model, why = attention.open_with(load, asked)
    if why is not None:
        print(f"attention: {type(model).__name__} runs with eager, as hardware.training.attention={asked} would "
              f"compute another model: {why}", file=sys.stderr, flush=True)
    bad = [name for name, weights in model.named_parameters() if not bool(torch.isfinite(weights).all())]
    if bad:
        raise UserError(f"{folder}: weights that are not finite, in {', '.join(first(bad, 5))}; the file is damaged or "
                        "its training diverged: take an earlier one")
    return (model, found) if report else model


@clock.spending(clock.LOAD)
def load_tokenizer(folder: Path, template: bool = False) -> Any:
    """Raises UserError where a chat template is wanted and not there."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if template and tokenizer.chat_template is None:
        raise UserError(f"reward: the tokenizer in {folder} has no chat template, expected one (chat_template.jinja) "
                        "that turns conversations into what the model was trained on")
    return tokenizer


def policy_encoder(folder: Path) -> Encoder:
    """Text -> ids as the policy of this folder reads and writes them."""
    quiet()
    return Encoder(load_tokenizer(folder), stop_ids(folder))


def pad_id(tokenizer: Any) -> int:
    """The tokenizer's pad id, its end-of-sequence id where it has none."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)


def stop_ids(folder: Path) -> tuple[int, ...]:
    """Every id that ends a completion: the eos list of generation_config.json, which init_model resolves once."""
    return model_facts(folder).stop_ids


def context_length(model: Any) -> int | None:
    """Positions that the model is used with (see `usable_positions`), None where its config sets no limit."""
    return usable_positions(model.config.get_text_config().to_dict())


@clock.spending(clock.WRITE)
def save_folder(model: Any, source: Path, target: Path, dtype: str) -> None:
    """Write `model` as a HF folder, with tokenizer, template and generation config byte for byte those of `source`.

    Its weights are rounded to `dtype` in place, one after the other: a second copy of all of them may not fit.
    Where the config of `source` says rotary positions in the older keys, they stand beside those of today.
    """
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    copied = copy_side_files(source, target)
    if model.can_generate():  # saving checks it by rules that published ones break; the source's is copied as it is
        model.generation_config = transformers.GenerationConfig()
    for weights in model.parameters():  # buffers stay: rounded, the frequencies of rotary positions are another model's
        weights.data = weights.data.to(getattr(torch, dtype))
    model.save_pretrained(target)
    for path in copied:
        shutil.copyfile(source / path.name, path)
    if rope.has_old_words(json.loads((source / "config.json").read_text())):
        config = rope.in_old_words(json.loads((target / "config.json").read_text()))
        (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def copy_side_files(source: Path, target: Path) -> list[Path]:
    """Copy everything of a HF folder's top level except weights and config."""
    copied = []
    for path in sorted(source.iterdir()):
        if path.is_file() and not any(path.match(pattern) for pattern in _WEIGHTS):
            shutil.copyfile(path, target / path.name)
            copied.append(target / path.name)
    return copied


def disable_dropout(model: Any) -> None:
    """Set every dropout probability to 0.

    Preference losses compare policy and reference on the same tokens, which noise in one of them would bias. The model
    stays in training mode, because gradient checkpointing works only there.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    model.train()


def _ready(model: Any, runtime: ModelRuntime | None) -> Any:
    disable_dropout(model)
    if runtime is not None and runtime.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model
