"""EXO on rewards (Ji et al. 2024): the reverse KL from the policy's choice among K answers to the reward's.

    q = softmax_i(beta (log pi(y_i) - log ref(y_i))),   p = softmax_i(R_i / beta_r)
    L = sum_i q_i (log q_i - log p_i)

The gradient flows through both factors. The forward KL with the same two distributions is InfoNCA. Where the policy
gives an answer almost no weight its gradient vanishes too. Sums over tokens.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.lists import comparable, compared_list, log_softmax_over, soft_labels
from pipeline.objectives.shared.pairs import masked, ratios_of, reference_of
from pipeline.objectives.shared.scores import scores_of


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of EXO on rewards."""

    beta: float = setting(0.5, above=0.0)
    """beta_pi, 1/nats. Official code: 0.5; the paper's appendix and TRL's pair form: 0.1."""

    reward_temperature: float = setting(0.5, above=0.0)
    """beta_r, in the unit of the rewards. Official code: 0.5."""


def exo_rw_losses(logps: Tensor, ref_logps: Tensor, scores: Tensor, present: Tensor, beta: float,
                  reward_temperature: float) -> Tensor:
    """EXO-rw loss of each group.

    Args:
        logps, ref_logps: (G, K) sums over completion tokens, nats.
        scores: (G, K) rewards. present: (G, K) bool; other entries are ignored.
        beta: > 0, 1/nats. reward_temperature: > 0, in the unit of the rewards.

    Returns: (G,), >= 0, KL(q || p): 0 where q = p, and -(mean_i log p_i) - ln K where policy and reference agree; 0 for
        a group without completion 0 or without any other.
    """
    log_q = log_softmax_over(beta * (masked(logps, present) - masked(ref_logps, present)), present)
    log_p = soft_labels(scores, present, reward_temperature)[1]
    divergence = masked(log_q.exp() * (log_q - log_p), present).sum(dim=1)
    return masked(divergence, comparable(present))


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics of a list. Raises ValueError without a reference or scores."""
    reference = reference_of(batch, "exo_rw")
    scores = scores_of(batch, "exo_rw")
    losses = exo_rw_losses(batch.logps, reference, scores, batch.present, settings.beta, settings.reward_temperature)
    rewards = settings.beta * ratios_of(batch, "exo_rw")
    return compared_list(comparable(batch.present), batch.present, losses, rewards)


OBJECTIVE = Objective(Settings, loss, needs=Needs(lists=True, reference=True, scores=True))
