"""Drawing M of the L candidates of each group: what mc, uniform, hardest and easiest have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.records import UserError

if TYPE_CHECKING:
    from torch import Tensor


def log_weights(
    logps: Tensor | None, ref_logps: Tensor | None, present: Tensor, weights: str, beta: float = 1.0
) -> Tensor:
    """Unnormalised log-weights of the candidates: (G, K - 1) for columns 1 .. K - 1, -inf where not present.

    weights: "reward", beta * (log pi - log ref), or "logp", beta * log pi; sums over tokens, at least float32.
    Raises UserError for "reward" without reference log-probs, ValueError without log-probs.
    """
    import torch

    if logps is None:
        raise ValueError("drawing negatives by weight needs the policy's log-probs of the candidates")
    values = _wide(logps.detach())
    if weights == "reward":
        if ref_logps is None:
            raise UserError(
                "negatives.weights: 'reward' needs reference log-probs, which this objective does not use; "
                "set negatives.weights=logp or use objective=rnce"
            )
        values = values - _wide(ref_logps.detach())
    return torch.where(present[:, 1:], beta * values[:, 1:], float("-inf"))


def gumbel(uniforms: Tensor) -> Tensor:
    """Standard Gumbel noise -log(-log u) of candidates, (G, K) uniforms in [0, 1) -> (G, K - 1); finite for u = 0."""
    import torch

    uniforms = _wide(uniforms[:, 1:])
    return -(-uniforms.clamp(min=torch.finfo(uniforms.dtype).tiny).log()).log()


def top(keys: Tensor, present: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """The m present candidates with the largest keys, largest first, ties to the lower index.

    Args: keys: (G, K - 1) of columns 1 .. K - 1. present: (G, K) bool. m: >= 1.

    Returns: indices (G, m) into the K completions, never 0, and valid (G, m). Raises ValueError for K < 2.
    """
    import torch

    if keys.shape[1] == 0:
        raise ValueError("there are no candidates to draw from: the groups hold one completion each")
    keys = keys.masked_fill(~present[:, 1:], float("-inf"))
    order = keys.argsort(dim=1, descending=True, stable=True)[:, :m]
    valid = present[:, 1:].gather(1, order)
    missing = m - order.shape[1]
    if missing > 0:
        order = torch.nn.functional.pad(order, (0, missing))
        valid = torch.nn.functional.pad(valid, (0, missing))
    return order + 1, valid


def entropy(logs: Tensor) -> Tensor:
    """Entropy in nats of softmax(logs), (G, L) -> (G,); entries of -inf have no weight; 0 for a row of only those."""
    import torch

    logs = torch.where(torch.isneginf(logs).all(dim=1, keepdim=True), 0.0, logs) if logs.shape[1] else logs
    probabilities = logs.softmax(dim=1)
    return torch.special.entr(probabilities).sum(dim=1)


def _wide(values: Tensor) -> Tensor:
    import torch

    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
