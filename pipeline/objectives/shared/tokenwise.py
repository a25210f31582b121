"""What the token-level objectives share: the token view, and sums per completion."""

from pipeline.objectives.contract import LossInputs, Tensor, TokenInputs
from pipeline.objectives.shared.pairs import at_least_float32


def tokens_of(batch: LossInputs, objective: str) -> TokenInputs:
    """batch.tokens. Raises ValueError when the trainer did not provide them."""
    if batch.tokens is None:
        raise ValueError(f"{objective} needs LossInputs.tokens, which is missing")
    return batch.tokens


def completion_sums(values: Tensor, tokens: TokenInputs, like: Tensor) -> Tensor:
    """Sums over the tokens of each completion, (G, K). values: (N,), one per token; like: any (G, K) of the batch."""
    flat = at_least_float32(values)
    sums = flat.new_zeros(like.numel()).index_add(0, tokens.group * like.shape[1] + tokens.column, flat)
    return sums.view(like.shape)
