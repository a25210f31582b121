"""Score every candidate with the live policy and learn from the drawn ones, with one forward pass's products.

    scored = score(model, examples, logits_per_chunk)      no gradient: log-probs of all candidates
    ... draw some completions of every group from scored.logps ...
    with scored.replay(kept):                              the forward pass of the kept completions, with gradient
        losses = ...

The draw is known only after the forward pass, and a backward pass through candidates that were not drawn is wasted. So
the scoring pass keeps what its matrix products gave, and the pass with gradient takes the rows of the drawn completions
from there instead of multiplying again: the products, which are nearly all of the work, run once forward for every
candidate and backward for the drawn ones only. What lies between them (norms, rotations, activations, attention) is
computed again for the drawn tokens, so autograd sees an ordinary graph on exactly those tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pipeline.training import forward, sharing
from pipeline.training.data import Example, columns
from pipeline.training.packed import Packed, pack

Products = dict[int, deque[Tensor]]  # id of a weight -> its products in the order of the calls, each (1, N, out)


@dataclass(frozen=True)
class Scored:
    """What the scoring pass of a micro-batch gave."""

    logps: Tensor  # (G, K) float32, nats; column 0 is not scored and stays 0, as does what is absent
    examples: tuple[Example, ...]
    packed: Packed
    products: Products

    def replay(self, kept: Sequence[Sequence[int]]) -> TorchFunctionMode:
        """While it is active, the model's forward pass on completions `kept[g]` of every group g, laid out by
        `columns(example, kept[g])`, takes its matrix products from the scoring pass. It serves one such pass.
        """
        rows = _rows(self.examples, self.packed, kept)
        return _Replay({weight: deque(found) for weight, found in self.products.items()}, rows)


def replayable(model: Any) -> bool:
    """Whether the pass with gradient repeats the scoring pass exactly: the packed layout, whole weights, no dropout,
    no checkpointing, which would run the layers a third time, and no compiled layers, which hide their products.
    """
    dropout = model.training and any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in model.modules())
    whole = all(type(p) is torch.nn.Parameter for p in model.parameters())
    compiled = any(m._compiled_call_impl is not None for m in model.modules())
    return (sharing.is_shared(model) and whole and not dropout and not compiled
            and not model.is_gradient_checkpointing)


@torch.no_grad()
def score(model: Any, examples: Sequence[Example], logits_per_chunk: int) -> Scored:
    """Run the policy on every completion of every group; log-probs of all but the first. The model is `replayable`."""
    device = next(model.parameters()).device
    rows = forward.collate(examples, device)
    with _Record(rows.packed.input_ids.shape[1]) as record, uncached(device):
        states = sharing.hidden_states(model, rows.packed)
    candidates = (rows.column > 0).nonzero()[:, 0]
    hidden = states.index_select(0, rows.packed.predict.index_select(0, candidates))
    per_token = torch.zeros(len(rows.targets), device=device)
    per_token[candidates] = forward.token_logps(model, hidden, rows.targets[candidates], logits_per_chunk)
    return Scored(forward.sums(rows, per_token), tuple(examples), rows.packed, record.products)


def uncached(device: torch.device) -> torch.autocast:
    """Autocast as it is, without its cache of converted weights: what it keeps of a pass without gradient it would hand
    to the pass with one, which would then not reach the weights.
    """
    kind = device.type
    return torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False)


def _rows(examples: Sequence[Example], packed: Packed, kept: Sequence[Sequence[int]]) -> Tensor:
    """(N',) int64: for every token of the layout of the kept completions its place in the layout of all."""
    small = pack([columns(e, ks) for e, ks in zip(examples, kept, strict=True)], "cpu")
    places = np.empty(small.input_ids.shape[1], np.int64)
    first, at = 0, 0
    for example, ks in zip(examples, kept, strict=True):
        for k in ks:
            places[small.sequences[at]] = packed.sequences[first + k]
            at += 1
        first += len(example.completions)
    return torch.from_numpy(places).to(packed.input_ids.device)


class _Record(TorchFunctionMode):
    """Keep the result of every linear layer on all `tokens`."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.products: Products = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is functional.linear and len(args) > 1 and result.shape[:-1] == (1, self.tokens):
            self.products.setdefault(id(args[1]), deque()).append(result)
        return result


class _Replay(TorchFunctionMode):
    """Give linear layers the rows of a result kept before. A layer that was not recorded computes as ever."""

    def __init__(self, products: Products, rows: Tensor) -> None:
        super().__init__()
        self.products, self.rows = products, rows

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear and len(args) > 1 and args[0].shape[:-1] == (1, len(self.rows)):
            waiting = self.products.get(id(args[1]))
            if waiting:
                bias = args[2] if len(args) > 2 else None
                return _KnownLinear.apply(args[0], args[1], bias, waiting.popleft(), self.rows)
        return func(*args, **(kwargs or {}))


class _KnownLinear(torch.autograd.Function):
    """A linear layer whose result is known: nothing to compute forward, the plain gradients backward."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, product: Tensor, rows: Tensor
    ) -> Tensor:  # (1, N', in), (out, in), (out,), (1, N, out), (N',) -> (1, N', out)
        ctx.save_for_backward(states.to(product.dtype), weight)
        ctx.kinds = states.dtype, None if bias is None else bias.dtype
        return product[0].index_select(0, rows)[None]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        states, weight = ctx.saved_tensors
        kind, bias_kind = ctx.kinds
        slopes, inputs = gradient[0].to(states.dtype), states[0]
        to_states = (slopes @ weight.to(slopes.dtype)).to(kind)[None] if ctx.needs_input_grad[0] else None
        to_weight = (slopes.T @ inputs).to(weight.dtype) if ctx.needs_input_grad[1] else None
        to_bias = slopes.sum(0, dtype=bias_kind) if ctx.needs_input_grad[2] else None
        return to_states, to_weight, to_bias, None, None
