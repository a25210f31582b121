"""Is the folder what was trained? It is loaded back, as by anyone, and compared with the trained model on a few rows.

What is compared is the log-prob of every token of an answer (the score of a reward model), in float32 on both sides:
the trained model's by the training core, the folder's by its own forward pass, row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.lm import forward
from pipeline.lm.examples import Example
from pipeline.lm.forward import autocast, device_of
from pipeline.lm.round_trip import own_logps
from pipeline.lm.scores import group_scores

TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}
"""The largest mean difference by the dtype written: nats a token, or units of score; of values larger than 1 on average
it is relative. Weights rounded to bfloat16 move the log-probs of a pretrained model of 135M weights by 0.008, of a mean
size of 2.8."""

LOW = 0.1
"""The same where the trained values are of passes in bfloat16: as an engine's in it (engines.engine.TOLERANCE)."""

_GROUPS, _COMPLETIONS, _TOKENS = 4, 2, 128  # of the run's own rows; _TOKENS of a prompt's end and of an answer's start
_LOGITS = 2**27  # tokens x vocabulary held at once


@dataclass(frozen=True)
class Probe:
    """The rows that trained model and folder are compared on, and what of them is compared."""

    examples: tuple[Example, ...]
    pad: int | None = None  # of a reward model, whose scores are compared; None: a language model's log-probs

    @classmethod
    def of(cls, examples: Sequence[Example], pad: int | None = None) -> Probe:
        """The first groups, cut short."""
        return cls(tuple(_short(examples[i]) for i in range(min(_GROUPS, len(examples)))), pad)

    @property
    def what(self) -> str:
        return "log-probs of tokens" if self.pad is None else "scores"


def by_training_core(model: Any, probe: Probe) -> Tensor:
    """(N,) float32 on the CPU, by the passes that trained the model."""
    flash = model.config._attn_implementation.startswith("flash")  # it takes no float32
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), \
            autocast(device_of(model), "bfloat16" if flash else "float32"):
        if probe.pad is not None:
            scores, present = group_scores(model, probe.examples, probe.pad)
            return scores[present].float().cpu()
        rows = forward.collate(probe.examples, device_of(model))
        hidden = forward.hidden_at_predictions(model, rows)
        return forward.token_logps(model, hidden, rows.targets, _LOGITS).float().cpu()


@torch.no_grad()
def by_own_forward(model: Any, probe: Probe) -> Tensor:
    """(N,) float32 on the CPU, by the model's own forward pass, one row after the other."""
    if probe.pad is None:
        found = own_logps(model, probe.examples)
        return torch.tensor([value for row in found for completion in row for value in completion])
    values = []
    for example in probe.examples:
        for k, completion in enumerate(example.completions):
            ids = np.concatenate([example.prompt_of(k), completion]).astype(np.int64)
            logits = model(input_ids=torch.from_numpy(ids).to(device_of(model))[None], use_cache=False).logits
            values.append(logits.float().flatten().cpu())
    return torch.cat(values)


def check(trained: Tensor, folder: Path, load: Callable[[Path], Any], probe: Probe, dtype: str,
          low: bool = False) -> None:
    """Raises UserError where the folder, loaded by `load`, does not give what was trained. The log says how near it is.

    trained: (N,) of the probe, before it was written in `dtype`. low: they were computed in bfloat16, as on CUDA.
    """
    differences = (by_own_forward(load(folder).eval(), probe) - trained).abs()
    size = trained.abs().mean().item()
    limit = (LOW if low else TOLERANCE[dtype]) * max(1.0, size)
    mean, largest = differences.mean().item(), differences.max().item()
    numbers = (f"{len(trained)} {probe.what} differ by {mean:.2g} on average and {largest:.2g} at most (mean size "
               f"{size:.3g}; up to {limit:.2g} on average is rounding in {dtype})")
    if not mean <= limit:
        raise UserError(f"model: the folder written is not the model that was trained: {numbers}; nothing is kept of "
                        "it. Ways out: trainer.save_dtype=float32, no adapter or other target_modules; else the "
                        "family is not supported")
    print(f"delivered as trained: loaded back, {numbers}", flush=True)


def _short(example: Example) -> Example:
    count = min(_COMPLETIONS, len(example.completions))
    prompts = None if example.prompts is None else tuple(p[-_TOKENS:] for p in example.prompts[:count])
    return Example(example.id, example.prompt[-_TOKENS:], tuple(c[:_TOKENS] for c in example.completions[:count]),
                   prompts=prompts)
