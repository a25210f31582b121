"""What the token-level objectives share: the token view, and sums per completion."""

from __future__ import annotations

from pipeline.objectives.contract import LossInputs, Tensor, TokenInputs
from pipeline.objectives.shared.tensors import at_least_float32


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
