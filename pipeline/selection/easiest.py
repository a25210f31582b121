"""The easiest negatives: the M candidates of the smallest weight ("Min" in Chen et al. 2025). Deterministic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.build import setting
from pipeline.selection.draws import log_weights, top

if TYPE_CHECKING:
    from torch import Tensor

NEEDS_LOGPS = True


@dataclass(frozen=True)
class Settings:
    """How many negatives, and what is smallest."""

    m: int = setting(1, low=1)
    """Negatives per group and step."""

    weights: str = setting("reward", choices=("reward", "logp"))
    """Order candidates by the implicit reward log(pi / ref), or by log pi."""


def draw(
    logps: Tensor | None, ref_logps: Tensor | None, present: Tensor, uniforms: Tensor, settings: Settings
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """See pipeline.selection. Ties go to the lower index. Metric: kernel_entropy = 0, there is nothing random."""
    import torch

    with torch.no_grad():
        logs = log_weights(logps, ref_logps, present, settings.weights)
        indices, valid = top(-logs, present, settings.m)
        return indices, valid, {"kernel_entropy": torch.zeros_like(logs[:, 0])}
