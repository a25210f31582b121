"""Length-desensitised DPO (Liu et al. 2024): what the longer answer has beyond the shorter one counts less.

    log pi(y) -> sum_{t <= m} log pi(y_t) + alpha sum_{t > m} log pi(y_t),   m = min(|y_w|, |y_l|)

in the policy's and in the reference's sums, then DPO. alpha = 1 is DPO. The same as DPO with the auxiliary setting
length_alpha.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.auxiliary import desensitised_sums
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective
from pipeline.objectives.dpo import dpo_losses
from pipeline.objectives.shared.pairs import compared, pairs_of, required, rewards_of
from pipeline.objectives.shared.tokenwise import tokens_of


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of LD-DPO."""

    beta: float = setting(0.1, above=0.0)
    """Strength of the pull to the reference, 1/nats, as in DPO."""

    alpha: float = setting(0.5, low=0.0, high=1.0)
    """Weight of the tokens beyond the shorter length. Paper and TRL (ld_alpha): 0.5."""


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics of a comparison.

    Raises UserError for more than two completions, ValueError without token inputs.
    """
    pairs = pairs_of(batch, "ld_dpo")
    tokens = tokens_of(batch, "ld_dpo")
    reference_logps = required(tokens.ref_logps, "tokens.ref_logps", "ld_dpo")
    policy = desensitised_sums(tokens.logps, tokens, batch.lengths, settings.alpha)
    reference = desensitised_sums(reference_logps, tokens, batch.lengths, settings.alpha)
    four = (*pairs.sides(policy), *pairs.sides(reference))
    return compared(pairs.usable, dpo_losses(*four, settings.beta), *rewards_of(four, settings.beta))


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True, token_logps=True, reference_tokens=True))
