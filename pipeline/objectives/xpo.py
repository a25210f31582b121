"""XPO, exploratory preference optimisation (Xie et al. 2024, Alg. 1): DPO plus optimism.

    y ~ pi_t,  y~ ~ ref;   L = -log s(beta h) + alpha log pi(y~)

The second term lowers the policy's likelihood of the reference's sample y~, whether it won or lost; the less of the
reference's ground is kept, the more is explored. Sums over tokens. Unbounded below: with a large learning rate
log pi(y~) runs away, watch reference_sample_logps. The paper minimises over all data so far, this over what the recipe
gives it.

Groups of three: chosen, rejected, and y~, which is one of the two, once more as the third.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.dpo import dpo_losses
from pipeline.objectives.shared.lists import laid_out
from pipeline.objectives.shared.pairs import at_least_float32, both, column, compared, reference_of, rewards_of


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of XPO."""

    beta: float = setting(0.1, above=0.0)
    """Strength of the pull to the reference, 1/nats. TRL: 0.1."""

    alpha: float = setting(1e-5, low=0.0)
    """Weight of the optimism. TRL: 1e-5; the paper names no value."""


def xpo_losses(chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
               sample_logps: Tensor, beta: float, alpha: float) -> Tensor:
    """XPO loss of each pair.

    Args:
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps: (G,) sums over tokens, nats.
        sample_logps: (G,) log pi of the reference's sample, nats, with gradient.
        beta: > 0. alpha: >= 0.

    Returns: (G,); ln 2 + alpha log ref(y~) where policy and reference agree.
    """
    fitted = dpo_losses(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)
    return fitted + alpha * at_least_float32(sample_logps)


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,), the metrics of a comparison and reference_sample_logps (nats).

    Raises UserError for groups of another layout, ValueError without a reference.
    """
    reference = reference_of(batch, "xpo")
    names = ("chosen", "rejected", "the reference's sample (one of the two, once more)")
    usable = laid_out(batch.present, "xpo", names)
    sample = column(batch.logps, 2, usable)
    four = (*both(batch.logps, usable), *both(reference, usable))
    losses = xpo_losses(*four, sample, settings.beta, settings.alpha)
    return compared(usable, losses, *rewards_of(four, settings.beta), reference_sample_logps=sample)


OBJECTIVE = Objective(Settings, loss, needs=Needs(reference=True, lists=True, layout="pair_and_copy"))
