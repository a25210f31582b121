"""What the token-level objectives share: sums per completion, the divergence at every position."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.objectives.tensors import at_least_float32
from pipeline.records import LossInputs, TokenInputs

if TYPE_CHECKING:
    from torch import Tensor


def tokens_of(batch: LossInputs, objective: str) -> TokenInputs:
    """batch.tokens. Raises ValueError when the trainer did not provide them."""
    if batch.tokens is None:
        raise ValueError(f"{objective} needs LossInputs.tokens, which is missing")
    return batch.tokens


def completion_sums(values: Tensor, tokens: TokenInputs, shape: tuple[int, int]) -> Tensor:
    """Sums over the tokens of each completion. values: (N,), one per token; shape: (G, K). Returns (G, K)."""
    groups, columns = shape
    flat = at_least_float32(values)
    sums = flat.new_zeros(groups * columns).index_add(0, tokens.group * columns + tokens.column, flat)
    return sums.view(groups, columns)


def token_divergences(ref_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(ref || pi) over the whole vocabulary at each position.

    Args: ref_logits, logits: (N, V) raw logits; the reference's carry no gradient.

    Returns: (N,), nats, >= 0, with gradient into `logits`. Tokens the reference gives no probability count nothing.
    """
    import torch

    ref_logps = at_least_float32(ref_logits.detach()).log_softmax(dim=1)
    logps = at_least_float32(logits).log_softmax(dim=1)
    return torch.where(ref_logps > float("-inf"), ref_logps.exp() * (ref_logps - logps), 0.0).sum(dim=1)
