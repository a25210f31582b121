"""NCA on pairs (Chen et al. 2024): noise contrastive alignment with one-hot labels.

    r = beta (log pi - log ref);    L = -log s(r_w) - 1/2 log s(-r_w) - 1/2 log s(-r_l)

The limit alpha -> 0, K = 2 of NCA on rewards. It judges each answer by itself, so the chosen reward cannot drift below
0 for free; the optimum is r_w = ln 2, r_l = -inf. Sums over tokens.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import compared, log_ratios, log_sigmoid, rewards_of, with_anchor


@dataclass(frozen=True)
class Settings:
    """Hyper-parameter of NCA on pairs."""

    beta: float = setting(0.01, above=0.0)
    """Scale of the implicit reward, 1/nats. Paper: 0.01."""


def nca_pair_losses(chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
                    beta: float) -> Tensor:
    """NCA loss of each pair.

    Args:
        chosen_logps, rejected_logps: (G,) log pi of the two completions, sums over tokens, nats.
        ref_chosen_logps, ref_rejected_logps: (G,) the same under the frozen reference.
        beta: > 0.

    Returns: (G,), each > 0; 2 ln 2 where policy and reference agree.
    """
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    chosen, rejected = beta * chosen, beta * rejected
    return -log_sigmoid(chosen) - 0.5 * log_sigmoid(-chosen) - 0.5 * log_sigmoid(-rejected)


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics of a comparison. Raises UserError for more than two completions."""
    pairs, four = with_anchor(batch, "nca_pair")
    return compared(pairs.usable, nca_pair_losses(*four, settings.beta), *rewards_of(four, settings.beta))


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True, reference=True))
