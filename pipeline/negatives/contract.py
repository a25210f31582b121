"""What a draw of negatives declares: groups of 1 + L -> the M negatives of this step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
else:  # a name for annotations: planning reads this module and loads no torch
    Tensor = Any

Drawn = tuple[Tensor, Tensor, dict[str, Tensor]]  # indices, valid, metrics


@dataclass(frozen=True)
class Draw:
    """What a module in pipeline/negatives declares as DRAW. No gradient flows through a draw."""

    Settings: type
    """With `m`, the number of negatives."""

    draw: Callable[..., Drawn]
    """(logps, ref_logps, present, uniforms, settings, lengths=None) -> indices, valid, metrics

    logps, ref_logps: (G, K) sums over completion tokens, nats; None where not needed
    present: (G, K) bool; column 0 is the preferred completion and never drawn
    uniforms: (G, K) in [0, 1), the only randomness
    lengths: (G, K) tokens, for settings with length_normalize
    indices: (G, M) int64 into the K completions, never 0
    valid: (G, M) bool, False where a group has fewer than M candidates (such an index means nothing)
    metrics: name -> (G,)
    """

    needs_logps: bool
    """Whether it looks at the policy's log-probs of the candidates."""

    needs_reference: bool | Callable[[Any], bool] = False
    """Whether it weighs them by log(policy / reference)."""
