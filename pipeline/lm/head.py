"""From hidden states to log-probs of the targets and what else is read of the logits, the LM head chunk by chunk.

Kept for the backward pass: the logits of a chunk in the precision of the matrix products, as long as all of them
together stay within a budget. Chunks beyond it are computed again, so (tokens, vocabulary) is never held whole where it
is large, whatever an objective reads. A head that is a matrix is fused with all reductions: the backward pass makes one
buffer of the gradient of a chunk's logits,

    d log p[t]     onehot(t) - p              d logit[i]     onehot(i)
    d KL(q || p)   p - q                      sum of squares, ids and the reference's log-probs: none
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pipeline.errors import UserError

_BLOCK = 64  # logits of a block, of which `largest` first looks at the maximum
_CACHE = 2**21  # logits of one chunk: 8 MB in float32, so that the passes over them stay in the cache of a CPU
_LARGE = 2**27  # a GPU wants large products instead


class Reductions(NamedTuple):
    """Of N tokens, at least float32. All but `logps` only where they are asked for."""

    logps: Tensor  # (N,) log-prob of the target, nats
    target_logits: Tensor | None = None  # (N,), with `top`
    top_logits: Tensor | None = None  # (N, K) the largest, in falling order
    top_ids: Tensor | None = None  # (N, K) int64
    log_sum_squares: Tensor | None = None  # (N,) log sum_v p(v)^2, no gradient
    ref_logps: Tensor | None = None  # (N,) log-prob of the target under the reference, no gradient
    divergences: Tensor | None = None  # (N,) KL(reference || policy), nats


@dataclass(frozen=True)
class Linear:
    """A linear head and the states it is applied to."""

    hidden: Tensor  # (N, H)
    weight: Tensor  # (V, H)
    bias: Tensor | None  # (V,)
    scale: float  # of the logits

    @classmethod
    def of(cls, model: Any, hidden: Tensor) -> Linear:
        head = model.get_output_embeddings()
        return cls(hidden, head.weight, head.bias, float(_scale(model)))

    def narrowed(self, kind: torch.dtype) -> Linear:
        """The same with products in `kind`."""
        bias = None if self.bias is None else self.bias.to(kind)
        return Linear(self.hidden.to(kind), self.weight.to(kind), bias, self.scale)

    def logits(self, place: slice) -> Tensor:
        """(n, V) logits of the tokens at `place`."""
        logits = functional.linear(self.hidden[place], self.weight, self.bias)
        return logits if self.scale == 1.0 else logits * self.scale


@dataclass(frozen=True)
class Plan:
    """What is asked for, and how much is held."""

    rows: int  # tokens of a chunk
    kept: int  # tokens whose logits are kept for the backward pass, from the first on
    top: int = 0  # how many of the largest logits
    sum_squares: bool = False
    reference: Linear | None = None

    def narrow_reference(self, kind: torch.dtype) -> Linear | None:
        return None if self.reference is None else self.reference.narrowed(kind)


def reductions(logits: Tensor, targets: Tensor, plan: Plan, ref_logits: Tensor | None) -> Reductions:
    """The reductions of (n, V) logits with (n,) targets, as autograd takes them; `ref_logits` carry no gradient."""
    at, wide = targets[:, None], torch.promote_types(logits.dtype, torch.float32)
    whole = functional.log_softmax(logits, dim=-1, dtype=wide)
    found: dict[str, Tensor] = {"logps": whole.gather(1, at)[:, 0]}
    if plan.top:
        ids = largest(logits.detach(), plan.top)
        scores = logits.gather(1, torch.cat([at, ids], dim=1)).to(wide)  # one gather: one buffer in the backward pass
        found |= {"target_logits": scores[:, 0], "top_logits": scores[:, 1:], "top_ids": ids}
    if plan.sum_squares:
        found["log_sum_squares"] = (2.0 * whole.detach()).logsumexp(1)
    if ref_logits is not None:
        reference = functional.log_softmax(ref_logits, dim=-1, dtype=wide)
        terms = torch.where(reference > float("-inf"), reference.exp() * (reference - whole), 0.0)
        found |= {"ref_logps": reference.gather(1, at)[:, 0], "divergences": terms.sum(1)}
    return Reductions(**found)


def largest(logits: Tensor, k: int) -> Tensor:
    """(n, min(k, V)) int64 ids of the k largest of (n, V) logits, largest first.

    The k largest lie in the k blocks with the largest maxima, so most of a row is read once and never sorted.
    """
    n, vocabulary = logits.shape
    blocks, k = vocabulary // _BLOCK, min(k, vocabulary)
    if blocks < 4 * k:
        return logits.topk(k, dim=1).indices
    body = blocks * _BLOCK
    best = logits[:, :body].view(n, blocks, _BLOCK).amax(dim=2).topk(k, dim=1).indices
    inside = (best[:, :, None] * _BLOCK + torch.arange(_BLOCK, device=logits.device)).flatten(1)
    rest = torch.arange(body, vocabulary, device=logits.device).expand(n, -1)
    ids = torch.cat([inside, rest], dim=1)
    return ids.gather(1, logits.gather(1, ids).topk(k, dim=1).indices)


def joined(parts: list[Reductions]) -> Reductions:
    """The reductions of all tokens from those of their chunks."""
    columns = (tuple(part[i] for part in parts) for i in range(len(Reductions._fields)))
    return Reductions(*(None if c[0] is None else torch.cat(c) for c in columns))  # type: ignore[arg-type]


class FusedHead(torch.autograd.Function):
    """The head's product and all reductions in one, `plan.rows` tokens at a time. Returns the fields of Reductions."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float, plan: Plan,
    ) -> tuple[Tensor | None, ...]:  # (N, H), (V, H), (V,) or None, (N,)
        kind = hidden.device.type
        narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        needed = any(ctx.needs_input_grad[:3])
        parts, totals, ref_totals, saved = [], [], [], []
        with torch.autocast(kind, enabled=False):
            own, reference = Linear(hidden, weight, bias, scale).narrowed(narrow), plan.narrow_reference(narrow)
            for place in _places(len(hidden), plan.rows):
                at, logits = targets[place], own.logits(place)
                ref_logits = None if reference is None else reference.logits(place)
                part = reductions(logits, at, plan, ref_logits)
                parts.append(part)
                totals.append(_total(logits, at, part.logps))
                ref_totals.append(_total(ref_logits, at, part.ref_logps))
                if needed and place.stop <= plan.kept:
                    saved += [logits] if ref_logits is None else [logits, ref_logits]
        found = joined(parts)
        ctx.mark_non_differentiable(
            *(v for v in (found.top_ids, found.log_sum_squares, found.ref_logps) if v is not None))
        ctx.set_materialize_grads(False)
        ctx.kind, ctx.narrow, ctx.scale, ctx.plan = hidden.dtype, narrow, scale, plan
        ctx.save_for_backward(own.hidden, weight, bias, targets, found.top_ids, _joined(totals), _joined(ref_totals),
                              *saved)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        low, weight, bias, targets, top_ids, totals, ref_totals, *saved = ctx.saved_tensors
        reference = ctx.plan.narrow_reference(ctx.narrow)
        own = Linear(low, weight, bias, ctx.scale).narrowed(ctx.narrow)
        soft, hard, top, apart = _slopes(Reductions(*slopes), ctx.scale, totals)  # type: ignore[arg-type]
        to_hidden = torch.empty_like(low) if ctx.needs_input_grad[0] else None
        wide = torch.promote_types(weight.dtype, torch.float32)  # sums over chunks, where FSDP2 gathers in bfloat16
        to_weight = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
        to_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        each = 1 if reference is None else 2
        for index, place in enumerate(_places(len(low), ctx.plan.rows)):
            held = saved[index * each:(index + 1) * each]
            logits = held[0] if held else own.logits(place)
            full = torch.sub(logits, totals[place]).exp_().mul_(soft[place])
            if reference is not None and apart is not None:
                ref_logits = held[1] if held else reference.logits(place)
                full.addcmul_(torch.sub(ref_logits, ref_totals[place]).exp_(), apart[place], value=-1.0)
            full.scatter_add_(1, targets[place, None], hard[place])
            if top is not None:
                full.scatter_add_(1, top_ids[place], top[place])
            if to_bias is not None:
                to_bias += full.sum(0)
            full = full.to(ctx.narrow)
            if to_hidden is not None:
                torch.mm(full, own.weight, out=to_hidden[place])
            if to_weight is not None:
                _add_product(to_weight, full, low[place])
        return (None if to_hidden is None else to_hidden.to(ctx.kind),
                None if to_weight is None else to_weight.to(weight.dtype), to_bias, None, None, None)


def _places(number: int, rows: int) -> Iterator[slice]:
    for start in range(0, number, rows):
        yield slice(start, min(start + rows, number))


def _total(logits: Tensor | None, targets: Tensor, logps: Tensor | None) -> Tensor | None:
    """(n, 1) logsumexp, without a pass of its own."""
    if logits is None or logps is None:
        return None
    return logits.gather(1, targets[:, None]).to(logps.dtype) - logps[:, None]


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    return None if parts[0] is None else torch.cat(parts)  # type: ignore[arg-type]


def _slopes(given: Reductions, scale: float, like: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """What the gradient of the logits has of p, of onehot(target), of the onehots of the largest, of -q."""
    zero = torch.zeros_like(like)
    logps, target, apart = (zero if v is None else scale * v[:, None]
                            for v in (given.logps, given.target_logits, given.divergences))
    return (apart - logps, logps + target, None if given.top_logits is None else scale * given.top_logits,
            None if given.divergences is None else apart)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left^T right, summed over the chunks in `total`'s own precision."""
    if left.dtype == total.dtype:
        total.addmm_(left.T, right)
    else:
        total += left.T @ right


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """(N, V) logits, with what Gemma-, Cohere- and Granite-like models do after their head."""
    logits, scale = model.get_output_embeddings()(hidden), _scale(model)
    logits = logits if scale == 1.0 else logits * scale
    if not _bends(model):
        return logits
    cap = model.config.final_logit_softcapping
    return torch.tanh(logits / cap) * cap


def token_logps(model: Any, hidden: Tensor, targets: Tensor, logits_per_chunk: int) -> Tensor:
    """(N,) float32 log-probs of the targets, nats; (N, H) hidden states, (N,) targets.

    At most `logits_per_chunk` logits (tokens x vocabulary) are kept for the backward pass or held at once.
    """
    return reduced(model, hidden, targets, logits_per_chunk).logps


def reduced(model: Any, hidden: Tensor, targets: Tensor, logits_per_chunk: int, top: int = 0, sum_squares: bool = False,
            reference: tuple[Any, Tensor] | None = None) -> Reductions:
    """Log-probs of the targets as `token_logps`, and where asked for: the `top` largest logits, the sum of squares, the
    divergence from a `reference` (a model and its (N, H) states, which get no gradient).

    Raises UserError where the reference has another vocabulary.
    """
    vocabulary, number = model.get_output_embeddings().weight.shape[0], len(hidden)
    heads = [(model, hidden)] if reference is None else [(model, hidden), reference]
    for other in (m.get_output_embeddings().weight.shape[0] for m, _ in heads[1:]):
        if other != vocabulary:
            raise UserError(f"reference_model: its vocabulary has {other} tokens, the policy's {vocabulary}; the "
                            "objective compares their distributions, expected the same; give the policy it was "
                            "trained from")
    budget = logits_per_chunk // len(heads)
    if all(_is_linear(m) for m, _ in heads):
        own, *others = (Linear.of(m, states) for m, states in heads)
        rows = max(1, min(budget, _CACHE if hidden.device.type == "cpu" else _LARGE) // vocabulary)
        plan = Plan(rows, budget // vocabulary, top, sum_squares, others[0] if others else None)
        return Reductions(*FusedHead.apply(own.hidden, own.weight, own.bias, targets, own.scale, plan))
    plan = Plan(number if number * vocabulary <= budget else max(1, budget // vocabulary), number, top, sum_squares)
    return _plain(model, hidden, targets, plan, reference)


def _plain(model: Any, hidden: Tensor, targets: Tensor, plan: Plan, reference: tuple[Any, Tensor] | None) -> Reductions:
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


def _scale(model: Any) -> float:
    config = model.config
    scale = getattr(config, "logit_scale", None)
    divide = getattr(config, "logits_scaling", None)
    return (1.0 if scale is None else scale) / (1.0 if divide is None else divide)


def _bends(model: Any) -> bool:
    return getattr(model.config, "final_logit_softcapping", None) is not None
