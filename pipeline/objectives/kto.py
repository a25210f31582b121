"""Kahneman-Tversky Optimization (Ethayarajh et al. 2024, Eq. 8): binary feedback around a reference point.

    z0 = max(0, mean over the batch of log pi(y') - log ref(y')), y' a completion of another prompt, no gradient
    wanted:    L = lambda_D (1 - s(beta (log pi - log ref - z0)))
    unwanted:  L = lambda_U (1 - s(beta (z0 - (log pi - log ref))))

z0 is in nats and clamped after the mean. The loss of a batch is the mean over all its examples, wanted and unwanted
alike: a group's is the sum over its completions, divided by how many a group of the batch has on average. With "zero",
whose groups are not looked at together, it is the mean over its own.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.labelled import Labelled, labelled, labelled_metrics, mean_over, only_pairs
from pipeline.objectives.shared.pairs import at_least_float32, required, row_means

_NEEDS = {"mismatched": Needs(reference=True, labels=True, mismatched=True, batch=True),
          "pair": Needs(reference=True, pairs=True, batch=True), "zero": Needs(reference=True, labels=True)}


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of KTO."""

    beta: float = setting(0.1, above=0.0)
    """Scale of the implicit reward, 1/nats. Paper: 0.1."""

    desirable_weight: float = setting(1.0, low=0.0)
    """lambda_D. Set one of the two so that lambda_D n_D / (lambda_U n_U) is between 1 and 4/3."""

    undesirable_weight: float = setting(1.0, low=0.0)
    """lambda_U."""

    reference_point: str = setting("mismatched", choices=tuple(_NEEDS))
    """"mismatched": z0 from completions of other prompts, the paper's; holds the reference model. "pair": the wanted
    are compared with the mean log-ratio of the unwanted and the reverse (TRL's old kto_pair). "zero": 0 (TRL's
    apo_zero_unpaired). The last two hold no reference model."""


def needs(settings: Settings) -> Needs:
    """The reference point decides."""
    return _NEEDS[settings.reference_point]


def kto_losses(log_ratios: Tensor, wanted: Tensor, wanted_point: Tensor | float, unwanted_point: Tensor | float,
               beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> Tensor:
    """KTO loss of each completion.

    Args:
        log_ratios: any shape, log pi - log ref, sums over tokens, nats.
        wanted: bool, same shape.
        wanted_point, unwanted_point: what wanted and unwanted ones are compared with, nats; scalars, no gradient. The
            paper has one, z0.
        beta: > 0. desirable_weight, undesirable_weight: >= 0.

    Returns: the same shape, in [0, weight]; weight / 2 where the log-ratio is at its reference point.
    """
    log_ratios = at_least_float32(log_ratios)
    # 1 - s(z) = s(-z)
    gain = desirable_weight * (-beta * (log_ratios - wanted_point)).sigmoid()
    pain = undesirable_weight * (beta * (log_ratios - unwanted_point)).sigmoid()
    return gain.where(wanted, pain)


def reference_points(batch: LossInputs, examples: Labelled, how: str) -> tuple[Tensor | float, Tensor | float]:
    """(for the wanted, for the unwanted), nats, >= 0, without gradient.

    Raises ValueError where "mismatched" is asked for and missing.
    """
    if how == "zero":
        return 0.0, 0.0
    if how == "pair":
        ratios = examples.ratios.detach()
        of_wanted, of_unwanted = (mean_over(ratios, keep) for keep in (examples.wanted, examples.unwanted))
        return of_unwanted.clamp(min=0), of_wanted.clamp(min=0)
    policy = required(batch.mismatched_logps, "mismatched_logps", "kto").detach()
    reference = required(batch.mismatched_ref_logps, "mismatched_ref_logps", "kto").detach()
    z0 = (at_least_float32(policy) - at_least_float32(reference)).mean().clamp(min=0)
    return z0, z0


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,), the metrics of a comparison and reference_point (that of the wanted, nats).

    With "pair" a group that lacks a wanted or an unwanted completion has loss 0.
    """
    examples = labelled(batch, "kto")
    if settings.reference_point == "pair":
        examples = only_pairs(examples)
    points = reference_points(batch, examples, settings.reference_point)
    weights = settings.desirable_weight, settings.undesirable_weight
    each = kto_losses(examples.ratios, examples.wanted, *points, settings.beta, *weights)
    losses = row_means(each, examples.present)
    if settings.reference_point != "zero":  # pairs and labels in one batch: every example counts the same
        sizes = examples.present.sum(dim=1)
        losses = losses * sizes / (sizes.sum() / (sizes > 0).sum().clamp(min=1)).clamp(min=1)
    shown = losses.detach() * 0 + points[0]
    return losses, labelled_metrics(examples, settings.beta, reference_point=shown)


OBJECTIVE = Objective(Settings, loss, needs=needs)
