"""Log-probs of every completion of some groups under a frozen model: the one pass for whoever asks for them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.lm import folders, forward, packed, prefix
from pipeline.lm.examples import Example
from pipeline.lm.forward import Rows, autocast, device_of
from pipeline.lm.settings import ModelRuntime

ALL = slice(None)


def open_frozen(folder: Path, device: torch.device, runtime: ModelRuntime, precision: str,
                options: dict[str, Any] | None = None) -> Any:
    """A causal LM that nothing trains, ready for these passes. Raises UserError as `prefix.prepare` does."""
    model = folders.load_policy(folder, device, runtime, {**folders.frozen(device, precision), **(options or {})})
    prefix.prepare(model, runtime.share_prefix)
    return model.requires_grad_(False)  # in training mode, as what it is compared with: 4-bit layers round by mode


def completion_logps(model: Any, examples: Sequence[Example], runtime: ModelRuntime, precision: str,
                     own: slice = ALL) -> list[list[float]]:
    """The sum over each completion's tokens, nats, float32 as training sums them; by example. own: the micro-batches
    that are computed; [] for the examples of others.
    """
    found: list[list[float]] = [[] for _ in examples]
    for micro, rows, values in _passes(model, examples, runtime, precision, None, own):
        for i, sums in zip(micro, forward.sums(rows, values).tolist(), strict=True):
            found[i] = sums[:len(examples[i].completions)]
    return found


def token_logps(model: Any, examples: Sequence[Example], runtime: ModelRuntime, precision: str,
                of_tokens: Callable[[Rows], Tensor] | None = None, own: slice = ALL) -> list[list[list[float]]]:
    """Of every completion token, nats; by example and completion. `of_tokens` gives another (N,) values of them; own:
    as above.
    """
    found: list[list[list[float]]] = [[] for _ in examples]
    for micro, rows, values in _passes(model, examples, runtime, precision, of_tokens, own):
        for i in micro:
            found[i] = [[] for _ in examples[i].completions]
        for g, k, value in zip(rows.group.tolist(), rows.column.tolist(), values.tolist(), strict=True):
            found[micro[g]][k].append(value)
    return found


def _passes(model: Any, examples: Sequence[Example], runtime: ModelRuntime, precision: str,
            of_tokens: Callable[[Rows], Tensor] | None, own: slice) -> Iterator[tuple[list[int], Rows, Tensor]]:
    def logps(rows: Rows) -> Tensor:
        hidden = forward.hidden_at_predictions(model, rows)
        return forward.token_logps(model, hidden, rows.targets, runtime.logits_per_chunk)

    device = device_of(model)
    for micro in packed.micro_batches(examples, runtime.tokens_per_batch, padded=not forward.is_shared(model))[own]:
        with torch.no_grad(), autocast(device, precision):
            rows = forward.collate([examples[i] for i in micro], device)
            values = (of_tokens or logps)(rows)
        yield micro, rows, values
