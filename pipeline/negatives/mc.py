"""The Monte-Carlo kernel of MC-PO (Chen et al. 2025, Algorithm 1): hard negatives in proportion to the model.

    w_i = softmax over the candidates i of beta (log pi(y_i) - log ref(y_i)),   the preferred completion left out
    M draws from w without replacement

The printed formula of w is not preserved in the text at hand; `weights` chooses between its two readings. With
"reward" the kernel is uniform where policy and reference agree, so training starts as plain RNCE and becomes
selective as the policy moves. With "logp" short completions dominate. Not normalised by length, as in the paper.

With S steps the candidates are dealt into S disjoint pools, candidate j to pool (j - 1) mod S (they are ranked, so
every pool gets good and bad ones). Step s draws M without replacement from pool s and the M of step s - 1; the last
draw counts. Over one fixed list further steps would only repeat the draw, so the pools must be disjoint.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.negatives.contract import Draw, Drawn, Tensor
from pipeline.negatives.draws import entropy, fresh, gumbel, log_weights, top, weighs_by_reward


@dataclass(frozen=True)
class Settings:
    """How many negatives, and the kernel's weights."""

    m: int = setting(1, low=1)
    """Negatives per group and step. Paper: 1; 2 and 3 in an ablation with 5 candidates."""

    weights: str = setting("logp", choices=("reward", "logp"))
    """Weigh candidates by beta log pi, or by the implicit reward beta log(pi / ref). logp is the outcome of the noise
    test (docs/decisions/009-mc-kernel.md)."""

    beta: float = setting(0.1, above=0.0)
    """Scale of the weights, 1/nats: the loss's own beta. Small: uniform; large: the hardest."""

    length_normalize: bool = False
    """Weigh by nats per token instead of their sum. Paper: sums."""

    steps: int = setting(1, low=1)
    """Steps S of the chain. Paper: 1."""


def draw(logps: Tensor | None, ref_logps: Tensor | None, present: Tensor, uniforms: Tensor, settings: Settings,
         lengths: Tensor | None = None) -> Drawn:
    """See Draw. Gumbel-top-M: adding Gumbel noise to log w and taking the M largest is exactly drawing
    M times from w, each time without the ones before. Metric: kernel_entropy of w, nats, at most ln L.
    """
    import torch

    with torch.no_grad():
        logs = log_weights(logps, ref_logps, present, settings, lengths, settings.beta)
        pool = torch.arange(present.shape[1], device=present.device) - 1
        state = torch.zeros_like(present)  # the draws of the step before
        for step in range(settings.steps):
            proposed = present & ((pool % settings.steps == step) | state)
            indices, valid = top(logs + gumbel(fresh(uniforms, step)), proposed, settings.m)
            state = torch.zeros_like(present, dtype=torch.int64).scatter_add(1, indices, valid.long()) > 0
        return indices, valid, {"kernel_entropy": entropy(logs)}


DRAW = Draw(Settings, draw, needs_logps=True, needs_reference=weighs_by_reward)
