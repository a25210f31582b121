"""Sampling by transformers in this process: for machines without vLLM. The same requests, the same records.

Prompts are left padded and sorted by length within a window; every sample draws from its own generator, so samples do
not depend on batch size, order or shards (logits may differ between batch shapes in the last bits).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import setting
from pipeline.engines.engine import (
    TOLERANCE,
    Answer,
    Backend,
    Request,
    Sample,
    finished,
    model_facts,
    overlong,
    text_decoder,
)
from pipeline.errors import UserError
from pipeline.lm.settings import DEVICES, ModelRuntime

if TYPE_CHECKING:
    from pipeline.engines.transformers.sampling import RawSample


@dataclass(frozen=True)
class Settings:
    """`dtype` changes the samples; the stage that samples records it."""

    dtype: str = setting("float32", choices=("float32", "bfloat16", "float16"))  # the number format it computes in
    batch_size: int = setting(128, low=1)  # sequences in one forward pass; a request's own n may exceed it
    window: int = setting(512, low=1)  # requests read ahead and sorted by length
    threads: int = setting(0, low=0)  # 0: torch's own choice
    device: str = setting("auto", choices=DEVICES)  # auto = cuda where there is one


@contextlib.contextmanager
def open_engine(model: Path, settings: Settings, log: Path) -> Iterator[Engine]:
    """Load `model` on the device of the settings. `log` is not used.

    Raises UserError where what it would sample from is not the model that is trained: see `sampling.gap`.
    """
    import torch

    from pipeline.engines.transformers.sampling import gap, load
    from pipeline.lm.folders import prepare_machine

    facts = model_facts(model)
    before = torch.get_num_threads()
    device = prepare_machine(ModelRuntime(settings.device, settings.threads or None))
    try:
        network = load(model, settings.dtype, device)
        found, limit = gap(network, facts), TOLERANCE[settings.dtype]
        if not found <= limit:
            raise UserError(f"engine: transformers samples from {model} with log-probs that differ from the trainer's "
                            f"by {found:.4f} nats per token, allowed are {limit}; take engine=vllm, or a model of a "
                            "family that docs/models.md lists")
        yield Engine(network, text_decoder(model), settings, facts.max_position, {"logprob_gap": found})
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Engine:
    """A loaded model; see pipeline.engines.engine.Engine."""

    network: Any  # transformers.PreTrainedModel
    decode: Callable[[Iterable[int]], str]
    settings: Settings
    context_length: int
    facts: dict[str, float] = field(default_factory=dict)

    def sample(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """One answer per request, in order, a window at a time."""
        reading = iter(requests)
        while window := list(itertools.islice(reading, self.settings.window)):
            order = sorted(range(len(window)), key=lambda i: len(window[i].prompt_ids))
            too_long = {i: why for i, request in enumerate(window) if (why := overlong(request, self.context_length))}
            answers = {i: Answer(refused=why) for i, why in too_long.items()}
            fitting = [(i, window[i]) for i in order if i not in too_long]
            for batch in _batches(fitting, self.settings.batch_size):
                answers.update(zip((i for i, _ in batch), self._answer([r for _, r in batch]), strict=True))
            yield from (answers[i] for i in range(len(window)))

    def _answer(self, requests: list[Request]) -> list[Answer]:
        made = []
        for request, completions in zip(requests, self._completions(requests), strict=True):
            if isinstance(completions, str):
                made.append(Answer(refused=completions))
                continue
            samples = []
            for j, one in enumerate(completions):
                ids, reason = finished(one.token_ids, one.finish_reason, request.stop_ids)
                samples.append(Sample(ids, reason, self.decode(ids), request.seed + j, one.logprobs))
            made.append(Answer(tuple(samples)))
        return made

    def _completions(self, requests: list[Request]) -> list[list[RawSample] | str]:
        """Of each request its completions, or why there are none: a batch that fails is halved until one request is
        left, which is the one to blame."""
        from pipeline.engines.transformers.sampling import generate, search

        try:
            made: dict[int, list[RawSample] | str] = {}
            for alike in _alike(requests):
                asked = [requests[i] for i in alike]
                searched = asked[0].beams > 1 or asked[0].no_repeat_ngram
                found = [[one] for one in search(self.network, asked)] if searched else generate(self.network, asked)
                made.update(zip(alike, found, strict=True))
            return [made[i] for i in range(len(requests))]
        except Exception as error:  # of a kernel, of memory: as many kinds as there are devices
            why = f"{type(error).__name__}: {error}"
        if len(requests) == 1:
            return [why]
        half = len(requests) // 2
        return [*self._completions(requests[:half]), *self._completions(requests[half:])]


def _alike(requests: list[Request]) -> list[list[int]]:
    """Places of requests that one call can take: those that draw, and those that search in one way."""
    found: dict[object, list[int]] = {}
    for i, r in enumerate(requests):
        searched = r.beams > 1 or r.no_repeat_ngram
        found.setdefault((r.beams, r.no_repeat_ngram, r.max_tokens, r.stop_ids) if searched else None, []).append(i)
    return list(found.values())


def _batches(requests: list[tuple[int, Request]], size: int) -> Iterator[list[tuple[int, Request]]]:
    """Runs of requests with at most `size` sequences together, at least one request each."""
    batch: list[tuple[int, Request]] = []
    for numbered in requests:
        if batch and sum(r.n * r.beams for _, r in [*batch, numbered]) > size:
            yield batch
            batch = []
        batch.append(numbered)
    if batch:
        yield batch


BACKEND = Backend(Settings, open_engine, beams=True)
