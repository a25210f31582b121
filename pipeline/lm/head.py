"""From hidden states to log-probs of the targets and what else is read of the logits, the LM head chunk by chunk.

Kept for the backward pass: the logits of a chunk in the precision of the matrix products, as long as all of them
together stay within a budget. Chunks beyond it are computed again, so (tokens, vocabulary) is never held whole where it
is large, whatever an objective reads. The gradient is the plain one either way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipeline.errors import UserError
from pipeline.lm.fused import FusedHead, Linear, Plan, Reductions, joined, reductions

_CACHE = 2**21  # logits of one chunk: 8 MB in float32, so that the passes over them stay in the cache of a CPU


@dataclass(frozen=True)
class Asked:
    """What of the logits is wanted beside the log-probs of the targets."""

    top: int = 0  # how many of the largest logits
    sum_squares: bool = False
    reference: tuple[Any, Tensor] | None = None  # a model and its (N, H) states: the divergence from it


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """(N, V) logits, with what Gemma-, Cohere- and Granite-like models do after their head."""
    return _after_head(model, model.get_output_embeddings()(hidden))


def token_logps(model: Any, hidden: Tensor, targets: Tensor, logits_per_chunk: int) -> Tensor:
    """(N,) float32 log-probs of the targets, nats; (N, H) hidden states, (N,) targets.

    At most `logits_per_chunk` logits (tokens x vocabulary) are kept for the backward pass or held at once.
    """
    return reduced(model, hidden, targets, logits_per_chunk, Asked()).logps


def reduced(model: Any, hidden: Tensor, targets: Tensor, logits_per_chunk: int, asked: Asked) -> Reductions:
    """Log-probs of the targets and what is asked for, as `token_logps`. Gradient into the model, not the reference.

    Raises UserError where the reference has another vocabulary.
    """
    vocabulary, number = model.get_output_embeddings().weight.shape[0], len(hidden)
    heads = [(model, hidden)] if asked.reference is None else [(model, hidden), asked.reference]
    for other, _ in heads[1:]:
        _same_vocabulary(vocabulary, other.get_output_embeddings().weight.shape[0])
    budget = logits_per_chunk // len(heads)
    if all(_is_linear(m) for m, _ in heads):
        own, *others = (_linear(m, states) for m, states in heads)
        rows = max(1, min(budget, _chunk(hidden.device)) // vocabulary)
        plan = Plan(rows, budget // vocabulary, asked.top, asked.sum_squares, others[0] if others else None)
        return Reductions(*FusedHead.apply(own.hidden, own.weight, own.bias, targets, own.scale, plan))
    plan = Plan(number if number * vocabulary <= budget else max(1, budget // vocabulary), number, asked.top,
                asked.sum_squares)
    return _plain(model, hidden, targets, plan, asked.reference)


def _plain(
    model: Any, hidden: Tensor, targets: Tensor, plan: Plan, reference: tuple[Any, Tensor] | None
) -> Reductions:
    """For heads that are more than a matrix: chunks by autograd, all but a single one computed again."""
    def some(states: Tensor, answers: Tensor, ref_states: Tensor | None) -> Reductions:
        ref_logits = None
        if reference is not None and ref_states is not None:
            with torch.no_grad():
                ref_logits = head_logits(reference[0], ref_states)
        return reductions(head_logits(model, states), answers, plan, ref_logits)

    others = None if reference is None else reference[1]
    if plan.rows >= len(hidden):
        return some(hidden, targets, others)
    parts = []
    for start in range(0, len(hidden), plan.rows):
        place = slice(start, start + plan.rows)
        parts.append(checkpoint(some, hidden[place], targets[place], None if others is None else others[place],
                                use_reentrant=False))
    return joined(parts)


def _is_linear(model: Any) -> bool:
    head = model.get_output_embeddings()
    return type(head) is torch.nn.Linear and type(head.weight) is torch.nn.Parameter and not _bends(model)


def _linear(model: Any, hidden: Tensor) -> Linear:
    head = model.get_output_embeddings()
    return Linear(hidden, head.weight, head.bias, float(_scale(model)))


def _same_vocabulary(own: int, other: int) -> None:
    if own != other:
        raise UserError(f"reference_model: its vocabulary has {other} tokens, the policy's {own}; the objective "
                        "compares their distributions, expected the same; give the policy it was trained from")


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
