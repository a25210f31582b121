"""The general preference model (Zhang et al. 2024): preference embeddings with an antisymmetric score, cycles allowed.

    v(x,y) in R^{2k}, of length 1;   s(y1 > y2) = sum_{l=1..k} lam_l(x) (v1[2l-1] v2[2l] - v1[2l] v2[2l-1])
    P(y1 > y2) = s(score / tau);     L = -log s(score(y_w > y_l) / tau)

A Bradley-Terry reward model is the case of a one-dimensional head. GPO optimises a policy with these scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.objectives.shared.tensors import at_least_float32, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


def embeddings(values: Tensor) -> Tensor:
    """(..., 2k) head outputs scaled to length 1 along the last dimension."""
    import torch

    return torch.nn.functional.normalize(at_least_float32(values), dim=-1)


def preference_scores(first: Tensor, second: Tensor, gates: Tensor | None = None) -> Tensor:
    """s(y1 > y2) of embeddings.

    Args:
        first, second: (..., 2k), usually of length 1. Broadcast against each other: (G, K, 1, 2k) with (G, 1, K, 2k)
            gives the table of all pairs.
        gates: (..., k) lam_l(x) >= 0, a softmax or softplus of the prompt's hidden state; None: 1.

    Returns: (...), antisymmetric: s(y1 > y2) = -s(y2 > y1), and 0 for an answer against itself.
    """
    first, second = at_least_float32(first), at_least_float32(second)
    planes = first[..., 0::2] * second[..., 1::2] - first[..., 1::2] * second[..., 0::2]
    return planes.sum(dim=-1) if gates is None else (at_least_float32(gates) * planes).sum(dim=-1)


def gpm_losses(scores: Tensor, tau: float = 0.1) -> Tensor:
    """-log s(score / tau), any shape. scores: s(y_w > y_l); tau: > 0, paper 0.1. ln 2 where the score is 0."""
    return -log_sigmoid(at_least_float32(scores) / tau)


def average_scores(table: Tensor) -> Tensor:
    """s_avg of K answers from their table of scores: the mean over all K opponents of the antisymmetric part.

    table: (..., K, K), [i, j] = s(y_i > y_j). Returns (..., K).
    """
    table = at_least_float32(table)
    return (0.5 * (table - table.transpose(-1, -2))).mean(dim=-1)
