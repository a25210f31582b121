"""Token-level DPO (Zeng et al. 2024): DPO with the sequential forward KL of both answers.

    u     = sum_t log[pi/ref](y_w,t) - sum_t log[pi/ref](y_l,t)
    D(y)  = sum_t KL( ref(.|x,y_<t) || pi(.|x,y_<t) )                  over the whole vocabulary
    TDPO-1 (Eq. 15):  L = -log s(beta (u - (D(y_l) - D(y_w))))
    TDPO-2 (Eq. 18):  L = -log s(beta (u - alpha (D(y_l) - sg[D(y_w)])))
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import at_least_float32, compared, log_sigmoid, pairs_of, required
from pipeline.objectives.shared.tokenwise import completion_sums, tokens_of


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of TDPO."""

    beta: float = setting(0.1, above=0.0)
    """Strength of the pull to the reference, 1/nats. Paper: 0.1."""

    version: int = setting(1, choices=(1, 2))
    """1: both divergences whole, both with gradient. 2: weighed by alpha, none through the chosen answer's; the authors
    recommend it for higher learning rates."""

    alpha: float = setting(0.5, low=0.0)
    """Weight of the divergences in version 2. Paper: 0.5."""


def tdpo_losses(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, chosen_divergence: Tensor,
                rejected_divergence: Tensor, beta: float, version: int = 1, alpha: float = 0.5) -> Tensor:
    """TDPO loss of each pair.

    Args:
        chosen_log_ratio, rejected_log_ratio: (G,) sum over tokens of log pi - log ref, nats.
        chosen_divergence, rejected_divergence: (G,) D(y_w), D(y_l): sums over positions of KL(ref || pi), nats.
        beta: > 0, 1/nats. version: 1 or 2. alpha: >= 0, version 2 only.

    Returns: (G,), each > 0; ln 2 where policy and reference agree.
    """
    chosen, rejected = at_least_float32(chosen_log_ratio), at_least_float32(rejected_log_ratio)
    of_chosen, of_rejected = at_least_float32(chosen_divergence), at_least_float32(rejected_divergence)
    delta = of_rejected - of_chosen if version == 1 else alpha * (of_rejected - of_chosen.detach())
    return -log_sigmoid(beta * (chosen - rejected - delta))


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,), the metrics of a comparison (rewards are beta times log-ratio plus divergence, the authors' values)
    and the two divergences. Raises UserError for more than two completions, ValueError without the token inputs.
    """
    pairs, tokens = pairs_of(batch, "tdpo"), tokens_of(batch, "tdpo")
    apart = required(tokens.divergences, "tokens.divergences", "tdpo")
    per_token = tokens.logps - required(tokens.ref_logps, "tokens.ref_logps", "tdpo")
    chosen, rejected = pairs.sides(completion_sums(per_token, tokens, batch.present))
    of_chosen, of_rejected = pairs.sides(completion_sums(apart, tokens, batch.present))
    losses = tdpo_losses(chosen, rejected, of_chosen, of_rejected, settings.beta, settings.version, settings.alpha)
    rewards = settings.beta * (chosen + of_chosen), settings.beta * (rejected + of_rejected)
    return compared(pairs.usable, losses, *rewards, divergence_chosen=of_chosen, divergence_rejected=of_rejected)


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True, divergences=True, reference_tokens=True))
