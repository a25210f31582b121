"""HyPO, hybrid preference optimisation (Song et al. 2024): DPO on offline pairs, reverse KL on the policy's samples.

    L = -log s(beta h) + lambda (1/k) sum_i log pi(y_i) sg[c_i - mean_{j != i} c_j],   y_i ~ pi,  c = log pi - log ref

The second term is a REINFORCE gradient of KL(pi || ref) with the leave-one-out baseline (none for k = 1). It needs no
labels. Sums over tokens, c in nats.

Columns of a group: chosen, rejected, then k >= 1 samples of the current policy for the same prompt. With lam = 0 it is
DPO, and a pair is enough.
"""

from dataclasses import dataclass, replace

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.dpo import dpo_losses
from pipeline.objectives.shared.lists import laid_out
from pipeline.objectives.shared.pairs import both, compared, masked, reference_of, rewards_of, row_means


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of HyPO. Both values are placeholders: only the abstract of the paper was available."""

    beta: float = setting(0.05, above=0.0)
    """Strength of the pull to the reference in the DPO term, 1/nats."""

    lam: float = setting(1e-4, low=0.0)
    """lambda, weight of the reverse KL."""


def needs(settings: Settings) -> Needs:
    """Without the reverse KL it is DPO on pairs, and samples behind them are not looked at."""
    needs, samples = Needs(reference=True, lists=True), "pair_and_samples"
    return replace(needs, layout=samples) if settings.lam > 0.0 else replace(needs, takes=(samples,))


def leave_one_out(values: Tensor, present: Tensor) -> Tensor:
    """c_i - mean_{j != i} c_j over the present samples of each row, without gradient.

    values: (G, k), present: (G, k) bool. Returns (G, k); c_i itself where it is the only one, 0 where absent.
    """
    values = masked(values.detach(), present)
    number = present.sum(dim=1, keepdim=True)
    rest = (values.sum(dim=1, keepdim=True) - values) / (number - 1).clamp(min=1)
    return masked((values - rest).where(number > 1, values), present)


def online_kl_losses(logps: Tensor, ref_logps: Tensor, present: Tensor) -> Tensor:
    """The reverse-KL term of each group.

    Args: logps, ref_logps: (G, k) of the policy's own samples, sums over tokens, nats. present: (G, k) bool.

    Returns: (G,) with gradient coefficient / k into each present `logps`; 0 where policy and reference agree, and for a
        group without samples. The value means nothing, the gradient is that of KL(pi || ref).
    """
    logps = masked(logps, present)
    coefficients = leave_one_out(logps - masked(ref_logps, present), present)
    return (coefficients * logps).sum(dim=1) / present.sum(dim=1).clamp(min=1)


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,), the metrics of a comparison and online_kl (mean log-ratio of the samples, nats).

    Raises UserError for groups of another layout, ValueError without a reference.
    """
    reference = reference_of(batch, "hypo")
    names = ("chosen", "rejected", "samples of the current policy (or set objective.lam=0)")
    usable = laid_out(batch.present, "hypo", names if settings.lam > 0.0 else names[:2], more=True)
    four = (*both(batch.logps, usable), *both(reference, usable))
    samples = batch.present[:, 2:] & usable[:, None]
    online = online_kl_losses(batch.logps[:, 2:], reference[:, 2:], samples)
    losses = dpo_losses(*four, settings.beta) + settings.lam * online
    ratios = masked(batch.logps[:, 2:], samples) - masked(reference[:, 2:], samples)
    return compared(usable, losses, *rewards_of(four, settings.beta), online_kl=row_means(ratios, samples))


OBJECTIVE = Objective(Settings, loss, needs=needs)
