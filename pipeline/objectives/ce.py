"""Cross-entropy on demonstrations: supervised fine-tuning.

    L = -log pi(y|x) = -sum_t log pi(y_t | x, y_<t)

over completion tokens only, the prompt is not learned. The batch is divided by its tokens, so a long answer weighs
more than a short one, as in every SFT trainer. Give it groups of one: with more, the first is learned and the
others still count in that division.
"""

from dataclasses import dataclass

from pipeline.objectives.contract import Losses, LossInputs, Objective, Tensor
from pipeline.objectives.shared.labelled import signs
from pipeline.objectives.shared.pairs import at_least_float32, column, detached


@dataclass(frozen=True)
class Settings:
    """Cross-entropy has no hyper-parameter."""


def ce_losses(logps: Tensor) -> Tensor:
    """Negative log-likelihood. logps: (G,) sums over completion tokens, nats. Returns (G,)."""
    return -at_least_float32(logps)


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) of completion 0, 0 where it is labelled unwanted, and the metric token_nll (nats per token)."""
    logps = column(batch.logps, 0, signs(batch)[0][:, 0])
    losses = ce_losses(logps)
    return losses, detached(token_nll=losses / batch.lengths[:, 0].clamp(min=1))


OBJECTIVE = Objective(Settings, loss, normalise="tokens")
