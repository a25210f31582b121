"""Settings of the language model itself. No heavy import: planning reads this module."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import setting

PRECISIONS = ("bfloat16", "float32")


@dataclass(frozen=True)
class AdapterSettings:
    """Low-rank adapters (Hu et al. 2022): W + alpha / r * B A, where only A and B are trained."""

    kind: str = setting("none", choices=("none", "lora", "qlora"))  # none = every weight; qlora = over a 4-bit base
    r: int = setting(16, low=1)
    alpha: int = setting(32, low=1)
    dropout: float = setting(0.0, low=0.0, below=1.0)  # of the adapter's input
    target_modules: tuple[str, ...] = ("all-linear",)  # names of linear layers, or "all-linear": all but the head

    @property
    def on(self) -> bool:
        return self.kind != "none"
