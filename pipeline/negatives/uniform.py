"""M candidates at random without replacement: the negatives of plain RNCE (Chen et al. 2025, Prop. 2.1)."""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.negatives.contract import Draw, Drawn, Tensor
from pipeline.negatives.draws import entropy, top


@dataclass(frozen=True)
class Settings:
    """How many negatives."""

    m: int = setting(1, low=1)
    """Negatives per group and step. Paper: 1 to 3."""


def draw(logps: Tensor | None, ref_logps: Tensor | None, present: Tensor, uniforms: Tensor, settings: Settings,
         lengths: Tensor | None = None) -> Drawn:
    """See Draw. The M largest uniforms are M candidates at random. Metric: kernel_entropy, ln L nats."""
    import torch

    with torch.no_grad():
        keys = uniforms[:, 1:]
        indices, valid = top(keys, present, settings.m)
        logs = torch.where(present[:, 1:], torch.zeros_like(keys), float("-inf"))
        return indices, valid, {"kernel_entropy": entropy(logs)}


DRAW = Draw(Settings, draw, needs_logps=False)
