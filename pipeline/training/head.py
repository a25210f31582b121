"""From hidden states to log-probs of the targets, with the LM head run chunk by chunk.

Kept for the backward pass: the logits of a chunk in the precision of the matrix products, as long as all of them
together stay within a budget. Chunks beyond it are computed again, so (tokens, vocabulary) is never held whole where it
is large. The gradient is the plain one either way: d logp[t] / d logits = onehot(target) - softmax.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

_CACHE = 2**21  # logits of one chunk: 8 MB in float32, so that the passes over them stay in the cache of a CPU


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """(N, V) logits, with what Gemma-, Cohere- and Granite-like models do after their head."""
    return _after_head(model, model.get_output_embeddings()(hidden))


def token_logps(model: Any, hidden: Tensor, targets: Tensor, logits_per_chunk: int) -> Tensor:
    """(N,) float32 log-probs of the targets, nats; (N, H) hidden states, (N,) targets.

    At most `logits_per_chunk` logits (tokens x vocabulary) are kept for the backward pass or held at once.
    """
    head = model.get_output_embeddings()
    vocabulary = head.weight.shape[0]
    if type(head) is torch.nn.Linear and type(head.weight) is torch.nn.Parameter and not _bends(model):
        kept = logits_per_chunk // vocabulary
        rows = max(1, min(logits_per_chunk, _chunk(hidden.device)) // vocabulary)
        scale = float(_scale(model))
        return _LinearLogps.apply(hidden, head.weight, head.bias, targets, rows, kept, scale)  # type: ignore[no-any-return]

    def some(part: Tensor, answers: Tensor) -> Tensor:
        return -functional.cross_entropy(head_logits(model, part).float(), answers, reduction="none")

    if hidden.shape[0] * vocabulary <= logits_per_chunk:
        return some(hidden, targets)
    size = max(1, logits_per_chunk // vocabulary)
    pieces = zip(hidden.split(size), targets.split(size), strict=True)
    return torch.cat([checkpoint(some, h, t, use_reentrant=False) for h, t in pieces])


def _chunk(device: torch.device) -> int:
    """Logits of one chunk: what a CPU's cache holds; a GPU wants large products instead."""
    return _CACHE if device.type == "cpu" else 2**27


def _scale(model: Any) -> float:
    config = model.config
    scale = getattr(config, "logit_scale", None)
    divide = getattr(config, "logits_scaling", None)
    return (1.0 if scale is None else scale) / (1.0 if divide is None else divide)


def _bends(model: Any) -> bool:
    return getattr(model.config, "final_logit_softcapping", None) is not None


def _after_head(model: Any, logits: Tensor) -> Tensor:
    scale = _scale(model)
    logits = logits if scale == 1.0 else logits * scale
    if not _bends(model):
        return logits
    cap = model.config.final_logit_softcapping
    return torch.tanh(logits / cap) * cap


class _LinearLogps(torch.autograd.Function):
    """The head's product, log softmax and gather in one, `rows` tokens at a time; the first `kept` tokens are kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rows: int, kept: int,
        scale: float,
    ) -> Tensor:  # (N, H), (V, H), (V,) or None, (N,) -> (N,) float32
        kind = hidden.device.type
        narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        ctx.rows, ctx.kept, ctx.scale, ctx.narrow = rows, kept, scale, narrow
        needed = any(ctx.needs_input_grad[:3])
        with torch.autocast(kind, enabled=False):
            low, matrix = hidden.to(narrow), weight.to(narrow)
            logps, totals, saved = [], [], []
            for start in range(0, len(hidden), rows):
                logits, at = _logits(low[start:start + rows], matrix, bias, scale), targets[start:start + rows, None]
                part = functional.log_softmax(logits, dim=-1, dtype=torch.float32).gather(1, at)
                logps.append(part)
                totals.append(logits.gather(1, at).float() - part)  # logsumexp, without a pass of its own
                if needed and min(start + rows, len(hidden)) <= kept:
                    saved.append(logits)
        ctx.kind = hidden.dtype
        ctx.save_for_backward(low, weight, bias, targets, torch.cat(totals), *saved)
        return torch.cat(logps)[:, 0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        low, weight, bias, targets, totals, *saved = ctx.saved_tensors
        matrix = weight.to(ctx.narrow)
        to_hidden = torch.empty_like(low) if ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        to_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for index, start in enumerate(range(0, len(low), ctx.rows)):
            place = slice(start, start + ctx.rows)
            states, slopes = low[place], gradient[place, None]
            logits = saved[index] if index < len(saved) else _logits(states, matrix, bias, ctx.scale)
            slopes = slopes * ctx.scale
            full = torch.sub(logits, totals[place]).exp_().mul_(-slopes).scatter_add_(1, targets[place, None], slopes)
            if to_bias is not None:
                to_bias += full.sum(0)
            full = full.to(ctx.narrow)
            if to_hidden is not None:
                torch.mm(full, matrix, out=to_hidden[place])
            if to_weight is not None:
                _add_product(to_weight, full, states)
        return (None if to_hidden is None else to_hidden.to(ctx.kind), to_weight, to_bias,
                None, None, None, None)


def _logits(states: Tensor, matrix: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """(n, V) logits in the precision of the matrix products."""
    logits = functional.linear(states, matrix, None if bias is None else bias.to(matrix.dtype))
    return logits if scale == 1.0 else logits * scale


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left^T right, summed over the chunks in `total`'s own precision."""
    if left.dtype == total.dtype:
        total.addmm_(left.T, right)
    else:
        total += left.T @ right
