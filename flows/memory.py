"""What every step of a plan needs of a device's memory, by arithmetic, and what would make it fit.

Bytes of one device at the fullest moment, which is the backward pass of a step: weights (with the copies that are
computed with), gradients, the optimizer's moments, what layers keep for the backward pass, logits, and vLLM's share.
What a token leaves in a layer was measured with hooks on saved tensors of a Llama, and tests/flows/test_memory.py
measures a whole process; other families keep a little more or less.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flows import machine, screen, trainings
from pipeline import hub
from pipeline.engines.engine import usable_positions
from pipeline.plan import Step
from pipeline.source import Source

COLUMNS = ["memory of a device", "together", "", "weights", "gradients", "moments", "activations", "logits", "vLLM"]
_FLOAT, _HALF, _NF4 = 4.0, 2.0, 0.6  # bytes of a weight; of 4 bits: norms, embeddings and head are not
_CHUNK = {False: 2**21, True: 2**27}  # logits of one chunk (lm/head.py), by whether the device is CUDA
_CONTEXT = 1.5e9  # of CUDA itself, its libraries and what the allocator cannot use


@dataclass(frozen=True)
class Shape:
    """Of a transformer, as a Llama has it."""

    hidden: int
    inner: int  # of the MLP
    layers: int
    query: int  # heads x head size
    key: int  # heads of keys x head size
    vocabulary: int
    tied: bool
    positions: int | None = None

    @property
    def layer(self) -> int:
        """Weights of one layer's matrices."""
        return 2 * self.hidden * (self.query + self.key) + 3 * self.hidden * self.inner

    @property
    def ends(self) -> int:
        """Weights of embeddings and head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def weights(self) -> int:
        return self.layers * self.layer + self.ends

    def adapters(self, rank: int) -> int:
        """Weights of adapters on every linear layer but the head."""
        sides = 2 * (2 * self.hidden + self.query + self.key) + 3 * (self.hidden + self.inner)
        return self.layers * rank * sides


def shape_of(model: Mapping[str, Any]) -> Shape | None:
    """Of the model a run starts from: `model` of its configuration. None where it does not tell."""
    try:
        if model.get("path"):
            source = Source(str(model["path"]), model.get("base") and str(model["base"]))
            source = (source.base_of_adapter() or source) if source.adapter else source
            folder = hub.fetched(source.path, weights=False) if source.on_hub else source.place
            read = json.loads((folder / "config.json").read_text())
            read = read.get("text_config", read)
        else:
            own = {"layers": "num_hidden_layers", "heads": "num_attention_heads", "kv_heads": "num_key_value_heads",
                   "max_position": "max_position_embeddings", "tie_embeddings": "tie_word_embeddings"}
            read = {own.get(key, key): value for key, value in model["arch"].items()}
        heads = int(read["num_attention_heads"])
        size = int(read.get("head_dim") or int(read["hidden_size"]) // heads)
        return Shape(int(read["hidden_size"]), int(read["intermediate_size"]), int(read["num_hidden_layers"]),
                     heads * size, int(read.get("num_key_value_heads") or heads) * size, int(read["vocab_size"]),
                     bool(read.get("tie_word_embeddings", False)), usable_positions(read))
    except Exception:  # of a broken or unknown configuration, as many as there are readers: `problems` tells it
        return None


def positions(model: Mapping[str, Any]) -> int | None:
    """Tokens that the model has positions for, None where it does not tell."""
    shape = shape_of(model)
    return None if shape is None else shape.positions


@dataclass(frozen=True)
class How:
    """How a step runs: what its memory depends on beside the model."""

    cuda: bool
    half: bool  # products in bfloat16
    adapter: str = "none"
    rank: int = 16
    shards: int = 1  # devices that FSDP2 spreads weights over
    checkpointing: bool = False
    tokens: int = 2048  # of a micro-batch
    logits: int = 2**27  # kept
    models: int = 0  # frozen ones beside the one that learns; of a step that trains none, all


@dataclass(frozen=True)
class Need:
    """Bytes of one device."""

    weights: float = 0.0
    gradients: float = 0.0
    moments: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    engine: float = 0.0
    context: float = 0.0
    loading: float = 0.0  # whole weights, before they are spread

    @property
    def total(self) -> float:
        return self.context + max(self.loading, self.weights + self.gradients + self.moments + self.activations
                                  + self.logits + self.engine)


def training(shape: Shape, weights: float, how: How) -> Need:
    """Of a step that trains, at the end of a backward pass that is not the first. weights: as the files say."""
    learned = weights if how.adapter == "none" else float(shape.adapters(how.rank))
    low = how.cuda and how.half and (how.shards > 1 or how.adapter != "none")  # states between layers are bfloat16
    held = learned * _FLOAT + (weights * _frozen(how) if how.adapter != "none" else 0.0)
    return Need(held / how.shards + _copies(shape, weights, how) + how.models * weights * _frozen(how),
                learned * _FLOAT / how.shards, 2 * learned * _FLOAT / how.shards,
                how.tokens * _kept(shape, how, low), _logits(shape, how, gradient=True), 0.0, _context(how),
                weights * (_frozen(how) if how.adapter != "none" else _FLOAT))


def reading(shape: Shape, weights: float, how: How) -> Need:
    """Of a step that only runs `how.models` models."""
    each = weights * _frozen(how)
    cast = _HALF * shape.layer if how.half and _frozen(how) == _FLOAT else 0.0
    return Need(how.models * each + cast, activations=how.tokens * _layer(shape, how, _frozen(how) == _HALF) / 2,
                logits=_logits(shape, how, gradient=False), context=_context(how))


def _frozen(how: How) -> float:
    """Bytes of a weight that nothing trains."""
    return _NF4 if how.adapter == "qlora" else _HALF if how.cuda and how.half else _FLOAT


def _copies(shape: Shape, weights: float, how: How) -> float:
    """Weights in the precision of the products, beside the masters: autocast's until the backward pass, or of the
    layers that FSDP2 has gathered (one, and the next) and of embeddings and head.
    """
    if how.cuda and how.shards > 1:
        return (_HALF if how.half else _FLOAT) * (2 * shape.layer + shape.ends)
    gathered = _FLOAT * (2 * shape.layer + shape.ends) if how.shards > 1 else 0.0
    if not how.half or how.adapter == "qlora" or (how.cuda and how.adapter != "none"):
        return gathered
    return gathered + _HALF * (weights - shape.ends + shape.vocabulary * shape.hidden)


def _kept(shape: Shape, how: How, low: bool) -> float:
    """Bytes a token leaves in all layers for the backward pass. low: the states between layers are bfloat16."""
    state = (_HALF if low else _FLOAT) * shape.hidden
    if how.checkpointing:  # each layer's input, and one layer as it is computed again
        return shape.layers * state + _layer(shape, how, low)
    return shape.layers * _layer(shape, how, low) + 3 * state


def _layer(shape: Shape, how: How, low: bool) -> float:
    """Bytes a token leaves in one layer."""
    hidden, query, key, inner = _BYTES[2 if low else 1 if how.half else 0]
    return hidden * shape.hidden + query * shape.query + key * shape.key + inner * shape.inner


# Bytes a token leaves in a layer by the width of its states, queries, keys and MLP: in float32, in bfloat16 over
# float32 states (autocast), and in bfloat16 throughout. A third more of queries and keys than where rows are plain: the
# packed layout copies a prompt's keys for each completion.
_BYTES = ((24, 12, 12, 16), (26, 14, 14, 8), (17, 8, 7, 8))


def _logits(shape: Shape, how: How, gradient: bool) -> float:
    """Logits kept for the backward pass, and the float32 buffers of one chunk; the gradient of the head besides."""
    number = min(how.logits, how.tokens * shape.vocabulary)
    chunk = min(number, _CHUNK[how.cuda])
    kept = number * (_HALF if how.half else _FLOAT) if gradient else 0.0
    return kept + 3 * _FLOAT * chunk + (_FLOAT * shape.vocabulary * shape.hidden if gradient else 0.0)


def _context(how: How) -> float:
    return _CONTEXT if how.cuda else 0.0


# ---------------------------------------------------------------------------------------------------------------------


def rows(config: Mapping[str, Any], steps: Iterable[Step]) -> tuple[list[list[str]], list[str]]:
    """A line as COLUMNS has it for each kind of step that holds a model, and what would make those fit that do not.

    Empty where the model is one from scratch on a CPU, or its files do not tell its shape.
    """
    model, device = config["model"], str(config["hardware"]["training"]["device"])
    shape = shape_of(model)
    if shape is None or not (model.get("path") or machine.on_cuda(device)):
        return [], []
    weights = float(trainings.pretrained_weights(model) or shape.weights)
    room = room_of(config)
    found: dict[tuple[str, Need], tuple[Callable[[How], Need] | None, How]] = {}
    for step in steps:
        name = step.name.partition("[")[0] + ("[i]" if step.iteration else "")
        for need, function, how in _needs(config, step, shape, weights, room):
            found.setdefault((name, need), (function, how))
    lines, ways = [], []
    for (name, need), (function, how) in found.items():
        fits = not room or need.total <= room
        parts = (need.weights, need.gradients, need.moments, need.activations, need.logits, need.engine)
        lines.append([name, screen.size(need.total), ("fits" if fits else "too much") if room else "?",
                      *(screen.size(part) if part else "-" for part in parts)])
        if not fits:
            way = _way(function, how, room) if function else "a smaller engine.context_length, or more devices"
            ways.append(f"{name}: {screen.size(need.total)}, a device has {screen.size(room)}; it would fit with {way}")
    return lines, ways


def room_of(config: Mapping[str, Any]) -> float:
    """Bytes of the device that the plan is for; 0 where it cannot be told."""
    given = config["hardware"]["memory_gb"]
    return given * 1e9 if given else float(machine.memory(str(config["hardware"]["training"]["device"])))


def _needs(config: Mapping[str, Any], step: Step, shape: Shape, weights: float,
           room: float) -> list[tuple[Need, Callable[[How], Need] | None, How]]:
    """What the step needs, by which function of how it runs; nothing where it holds no model."""
    engine, cuda = config["engine"], machine.on_cuda(str(config["hardware"]["training"]["device"]))
    share = (engine.get("gpu_memory_utilization") or 0.92) * room if cuda and "sleep_level" in engine else 0.0
    if step.plugin.samples:
        if engine.get("url"):
            return []
        least = weights * (_FLOAT if engine["dtype"] == "float32" else _HALF)
        need = Need(engine=max(share, least)) if share else Need(weights=least)
        return [(need, None, How(cuda, True))]
    awake = share if share and not engine["sleep_level"] and not engine.get("url") else 0.0
    trainer = trainings.trainer_of(step)
    if trainer is not None:
        how = replace(_how(step.runtime, cuda, trainer.precision), adapter=trainer.adapter.kind, rank=trainer.adapter.r,
                      models=int("reference_model" in step.inputs))
        function: Callable[[How], Need] = lambda how: replace(training(shape, weights, how), engine=awake)  # noqa: E731
    elif (models := _models(step)) is not None:
        precision, number, kind = models
        runtime = step.runtime.models if step.stage == "score" else step.runtime
        how = replace(_how(runtime, cuda, precision), models=number, adapter=kind, shards=1)
        function = lambda how: replace(reading(shape, weights, how), engine=awake)  # noqa: E731
    else:
        return []
    return [(function(how), function, how)]


def _how(runtime: Any, cuda: bool, precision: str) -> How:
    return How(cuda, precision == "bfloat16", shards=runtime.world_size if runtime.strategy == "fsdp2" else 1,
               checkpointing=runtime.gradient_checkpointing, tokens=runtime.tokens_per_batch,
               logits=runtime.logits_per_chunk)


def _models(step: Step) -> tuple[str, int, str] | None:
    """Precision, number and adapter of the models that a step reads at once; None where it reads none."""
    if step.stage == "reference_logprobs":
        return step.settings.precision, 1, "qlora" if step.settings.weights == "nf4" else "none"
    if step.stage in ("diagnose", "weigh_prompts"):
        return ("float32" if step.stage == "weigh_prompts" else step.settings.precision), 1, "none"
    if step.stage != "score":
        return None
    scorers = [step.settings.reward, *step.settings.also.values()]
    number = len({"model", "policy", "reference"} & set(step.inputs)) + sum(bool(one.get("path")) for one in scorers)
    precision = "float32" if any(one.get("precision") == "float32" for one in scorers) else "bfloat16"
    return (precision, number, "none") if number else None


def _way(function: Callable[[How], Need], how: How, room: float) -> str:
    """The settings that make it fit, the fewest and gentlest first."""
    trains = function(how).gradients > 0
    checkpointing = ("hardware.training.gradient_checkpointing=true", {"checkpointing": True})
    fewer = (f"hardware.training.tokens_per_batch={max(1, how.tokens // 4)}", {"tokens": max(1, how.tokens // 4)})
    lora = ("trainer=lora", {"adapter": "lora"})
    more: list[tuple[str, dict[str, Any]]]
    more = [(f"{n} devices (hardware.devices={n})", {"shards": n}) for n in (2, 4, 8, 16, 32, 64) if n > how.shards]
    tries: list[list[tuple[str, dict[str, Any]]]] = [[fewer]]
    if trains:
        tries = [[checkpointing], [fewer], [checkpointing, fewer], [lora], [lora, checkpointing],
                 [lora, checkpointing, fewer], *[[one] for one in more], *[[checkpointing, one] for one in more]]
    for settings in tries:
        changed = replace(how, **{key: value for _, change in settings for key, value in change.items()})
        if function(changed).total <= room:
            return " and ".join(text for text, _ in settings)
    return "a smaller model alone"
