"""The hardest negatives: the M candidates of the largest weight ("Max" in Chen et al. 2025). Deterministic."""

from __future__ import annotations

from pipeline.negatives.contract import Draw, Tensor
from pipeline.negatives.draws import Ends as Settings
from pipeline.negatives.draws import ends, weighs_by_reward


def draw(logps: Tensor | None, ref_logps: Tensor | None, present: Tensor, uniforms: Tensor, settings: Settings,
         lengths: Tensor | None = None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """See Draw. Ties go to the lower index. Metric: kernel_entropy = 0, there is nothing random."""
    return ends(logps, ref_logps, present, settings, lengths, sign=1)


DRAW = Draw(Settings, draw, needs_logps=True, needs_reference=weighs_by_reward)
