"""The Monte-Carlo kernel of MC-PO (Chen et al. 2025, Algorithm 1): hard negatives in proportion to the model.

    w_i = softmax over the candidates i of beta (log pi(y_i) - log ref(y_i)),   the preferred completion left out
    M draws from w without replacement

The printed formula of w is not preserved in the text at hand; `weights` chooses between its two readings. With
"reward" the kernel is uniform where policy and reference agree, so training starts as plain RNCE and becomes
selective as the policy moves. With "logp" short completions dominate. Not normalised by length, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.build import setting
from pipeline.selection.draws import entropy, gumbel, log_weights, top

if TYPE_CHECKING:
    from torch import Tensor

NEEDS_LOGPS = True


@dataclass(frozen=True)
class Settings:
    """How many negatives, and the kernel's weights."""

    m: int = setting(1, low=1)
    """Negatives per group and step. Paper: 1; 2 and 3 in an ablation with 5 candidates."""

    weights: str = setting("reward", choices=("reward", "logp"))
    """Weigh candidates by the implicit reward beta log(pi / ref), or by beta log pi."""

    beta: float = setting(0.1, above=0.0)
    """Scale of the weights, 1/nats: the loss's own beta. Small: uniform; large: the hardest."""


def draw(
    logps: Tensor | None, ref_logps: Tensor | None, present: Tensor, uniforms: Tensor, settings: Settings
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """See pipeline.selection. Gumbel-top-M: adding Gumbel noise to log w and taking the M largest is exactly drawing
    M times from w, each time without the ones before. Metric: kernel_entropy, nats, at most ln L.
    """
    import torch

    with torch.no_grad():
        logs = log_weights(logps, ref_logps, present, settings.weights, settings.beta)
        indices, valid = top(logs + gumbel(uniforms), present, settings.m)
        return indices, valid, {"kernel_entropy": entropy(logs)}
