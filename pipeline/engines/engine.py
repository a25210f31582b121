"""What every engine takes and gives: token ids in, token ids out.

An engine is a module with `BACKEND = Backend(...)` at its end. Light: planning imports engine modules, so torch
and the like are imported inside their functions.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import UserError, one_line
from pipeline.records import LENGTH, STOP
from pipeline.source import ADAPTER

FACTS = "config.json"
_PROBE_TOKENS = 16  # of prompt and answer each

TOLERANCE = {"float32": 5e-4, "float16": 0.03, "bfloat16": 0.1}
"""The largest mean difference of an engine's log-probs from the trainer's that is rounding, nats per token, by the
engine's dtype. Measured on CPU: 5e-6 in float32; in bfloat16 0.002 with 6M weights and 0.025 to 0.065 with 135M, whose
logits near 20 lie 0.125 apart in it."""


@dataclass(frozen=True)
class Request:
    """`n` samples of one prompt, all at one temperature. Sample j has the seed `seed + j`."""

    prompt_ids: tuple[int, ...]
    n: int
    temperature: float  # 0: greedy
    top_p: float  # in (0, 1]
    top_k: int  # 0: off
    max_tokens: int
    stop_ids: tuple[int, ...]
    seed: int  # in [0, 2^62), so that seed + j stays a 63-bit number
    logprobs: bool = False  # keep the log-prob of every sampled token
    beams: int = 1  # of beam search, where more than 1: n is 1 then, and the temperature 0
    no_repeat_ngram: int = 0  # tokens of an n-gram that must not occur again, in prompt and completion; 0: any may


@dataclass(frozen=True)
class Sample:
    """One sampled completion. `token_ids` ends with a stop id if and only if `finish_reason` is "stop"."""

    token_ids: tuple[int, ...]
    finish_reason: str
    text: str  # the ids decoded without special tokens
    seed: int
    logprobs: tuple[float, ...] | None = None  # of each token under the model itself (temperature 1, no cut), nats


@dataclass(frozen=True)
class Answer:
    """The samples of one request, or why the engine refused it."""

    samples: tuple[Sample, ...] = ()
    refused: str = ""


class Engine(Protocol):
    """An open engine: it serves one model folder."""

    @property
    def context_length(self) -> int:
        """Prompt + completion tokens it can hold."""

    @property
    def facts(self) -> dict[str, float]:
        """Numbers worth keeping with the result."""

    def sample(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """One answer per request, in order, reading `requests` ahead as far as keeps the engine busy."""


class Service(Protocol):
    """An engine that outlives a stage."""

    @property
    def environment(self) -> Mapping[str, str]:
        """What a stage's process needs to use it."""

    def wait_ready(self, timeout: float) -> None: ...

    def alive(self) -> bool: ...

    def rest(self) -> None: ...

    def wake(self) -> None: ...

    def stop(self) -> None: ...


@dataclass(frozen=True)
class Keeping:
    """How a service may wait for the next run of its workspace (pipeline/waiting.py)."""

    seconds: Callable[[Any], float]
    """settings -> how long it waits, 0: not at all."""

    start: Callable[[Path, Path, Any, Path], Service]
    """(model folder, log file, settings, the folder whose lock the caller holds) -> a service that may wait."""

    record: Callable[[Any, Path, Any], dict[str, Any]]
    """(service, model folder, settings) -> what a later run needs to go on with it; `log`: where it writes."""

    resume: Callable[[dict[str, Any], Path, Path, Any, Path], Service]
    """(that record, the later run's model folder, log and settings, the folder) -> the service; raises
    waiting.Unusable with why it will not do."""


@dataclass(frozen=True)
class Backend:
    """What a module in pipeline/engines declares as BACKEND."""

    Settings: type

    open_engine: Callable[[Path, Any, Path], AbstractContextManager[Engine]]
    """(model folder, settings, a log file it may write to) -> the engine, open."""

    start_service: Callable[[Path, Path, Any], Service | None] | None = None
    """(model folder, log file, settings) -> an engine that outlives a stage; None where the user's own server does."""

    check_service: Callable[[Any], list[str]] = lambda _: []
    """settings -> the problems of a service that already runs, told by planning."""

    findings: Callable[[Any], tuple[list[tuple[str, str]], list[str]]] = lambda _: ([], [])
    """settings -> what `align doctor` says of it: (what, found) rows, and problems."""

    refuse_model: Callable[[Path, Any], None] = lambda model, settings: None
    """(model folder, settings): raises UserError for a model that a service could not serve, before one is started."""

    shares_device: bool | Callable[[Any], bool] = False
    """Whether training needs the service's device: it then starts with the first step that samples."""

    reachable: bool = False
    """Whether its service answers on other machines, too."""

    keeping: Keeping | None = None
    """How its service may wait for the next run; None: it ends with the run."""

    beams: bool = False
    """Whether it takes requests with `beams` or `no_repeat_ngram`."""


@dataclass(frozen=True)
class ModelFacts:
    """What sampling needs to know of a model folder."""

    stop_ids: tuple[int, ...]
    vocab_size: int
    max_position: int


def adapter_base(model: Path) -> Path | None:
    """The base model's folder if `model` is a LoRA adapter in peft's format, else None.

    Raises UserError where the adapter names a base that is no local folder.
    """
    if not (model / ADAPTER).exists():
        return None
    named = _json(model / ADAPTER).get("base_model_name_or_path")
    base = model / str(named)  # an absolute path stays what it is
    if not named or not (base / FACTS).exists():
        raise UserError(f"{model / ADAPTER}: base_model_name_or_path is {named!r}, expected a model folder on this "
                        f"machine, absolute or relative to the adapter's")
    return base.resolve()


def adapter_rank(model: Path) -> int:
    """The largest rank in a LoRA adapter, `rank_pattern` included."""
    config = _json(model / ADAPTER)
    return max(int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values()), 0)


def model_facts(model: Path) -> ModelFacts:
    """Stop ids, vocabulary size and context length of a Hugging Face folder; of an adapter's base if it is one.

    Stop ids are every `eos_token_id` of generation_config.json, else of config.json. The context length is
    `usable_positions`. Else the other two are as config.json states them, else as transformers resolves them: families
    name them in their own ways, and leave defaults out.
    Raises UserError where one of the three is not to be found.
    """
    model = adapter_base(model) or model
    config = _json(model / FACTS)
    config = {**config, **(config.get("text_config") or {})}
    generation = _json(model / "generation_config.json") if (model / "generation_config.json").exists() else {}
    stop = generation.get("eos_token_id", config.get("eos_token_id"))
    stop_ids = tuple(stop) if isinstance(stop, list) else (stop,) if isinstance(stop, int) else ()
    numbers: dict[str, Any] = {key: config.get(key) for key in ("vocab_size", "max_position_embeddings")}
    problems = [] if stop_ids else [
        f"{model}: no eos_token_id in generation_config.json or {FACTS}, so sampling would never stop; add it there"]
    if not all(isinstance(number, int) for number in numbers.values()):
        try:
            numbers = _resolved(model, *numbers)
        except UserError as error:
            raise UserError(*problems, *error.problems) from None
    problems += [f"{model / FACTS}: no {key}, expected a whole number" for key, number in numbers.items()
                 if not isinstance(number, int)]
    if problems:
        raise UserError(*problems)
    room = usable_positions({**config, **numbers})
    assert room is not None  # max_position_embeddings is a whole number by now
    return ModelFacts(stop_ids, int(numbers["vocab_size"]), room)


def usable_positions(config: Mapping[str, Any]) -> int | None:
    """Tokens that the model has positions for and is one model on, by the content of config.json; None: no limit."""
    limits = (config.get("max_position_embeddings"), steady_positions(config))
    return min((limit for limit in limits if isinstance(limit, int)), default=None)


def steady_positions(config: Mapping[str, Any]) -> int | None:
    """Tokens up to which a sequence's log-probs are its own, by the content of config.json; None: at any length.

    LongRoPE (Ding et al. 2024, of Phi-3 128k and Phi-4-mini) has two sets of rotary factors. Transformers takes the
    long ones for a whole batch once one sequence in it is longer than the length of pretraining, vLLM for every
    sequence once its context is: longer than that, they are two models, and a batch mixes them.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) != "longrope":
        return None
    return rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")


def _resolved(model: Path, *keys: str) -> dict[str, Any]:
    """Numbers of the configuration as its class has them: GPT-2's context length is called n_positions in its file."""
    from transformers import AutoConfig  # imports torch: not where config.json says it all

    try:
        config = AutoConfig.from_pretrained(model).get_text_config()
    except ValueError as error:
        raise UserError(f"{model / FACTS}: transformers cannot read it ({one_line(error)})") from None
    return {key: getattr(config, key, None) for key in keys}


def text_decoder(model: Path) -> Callable[[Iterable[int]], str]:
    """ids -> text without special tokens, by the folder's own tokenizer: every engine writes the same text."""
    file = model / "tokenizer.json"
    if not file.exists() and (base := adapter_base(model)):
        file = base / "tokenizer.json"
    if not file.exists():
        raise UserError(f"{model}: no tokenizer.json; save the tokenizer with transformers' save_pretrained")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True))


def probe(facts: ModelFacts) -> Request:
    """A greedy request whose tokens show an engine's log-probs, its prompt spread over the vocabulary."""
    prompt = tuple((7919 * i + 11) % facts.vocab_size for i in range(_PROBE_TOKENS))
    return Request(prompt, 1, 0.0, 1.0, 0, _PROBE_TOKENS, facts.stop_ids, 0, logprobs=True)


def overlong(request: Request, context_length: int) -> str:
    """Why an engine of this context length refuses the request; "" where it fits."""
    length = len(request.prompt_ids) + request.max_tokens
    if length <= context_length:
        return ""
    return f"prompt and max_tokens need {length} tokens, the context length is {context_length}"


def finished(token_ids: list[int], finish_reason: str, stop_ids: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
    """Hold an engine to the contract: the ids end with a stop id iff the reason is "stop".

    Raises RuntimeError where they do not: such a record would train the wrong end of every completion.
    """
    ends = bool(token_ids) and token_ids[-1] in stop_ids
    if finish_reason not in (STOP, LENGTH) or ends != (finish_reason == STOP):
        raise RuntimeError(f"the engine answered finish_reason {finish_reason!r} for ids ending in {token_ids[-3:]} "
                           f"with stop ids {list(stop_ids)}")
    return tuple(token_ids), finish_reason


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: not found, expected a Hugging Face model folder with it") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    return found
