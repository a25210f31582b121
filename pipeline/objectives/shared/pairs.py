"""What the objectives have in common: precision, absent completions, and of those on pairs the four log-probs,
log-ratios and the metrics of a comparison.

Notation: a = log pi(y_w) - log ref(y_w), b = log pi(y_l) - log ref(y_l), h = a - b; s is the logistic sigmoid. Unless a
function says otherwise its log-probs are (G,) sums over completion tokens in nats, and it computes half precision in
float32, float32 in float32, float64 in float64.
"""

from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.objectives.contract import Losses, LossInputs, Tensor

Four = tuple[Tensor, Tensor, Tensor, Tensor]  # log-probs: chosen, rejected; the same two under a frozen model


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision -> float32, wider types unchanged: summed log-probs of 500 tokens lose whole nats in bfloat16."""
    import torch

    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def log_sigmoid(values: Tensor) -> Tensor:
    """log s(z), elementwise, any shape. Exact for every |z|, where log(sigmoid(z)) gives -inf below z = -745."""
    import torch

    return torch.nn.functional.logsigmoid(values)


def softplus(values: Tensor) -> Tensor:
    """log(1 + e^z), elementwise. torch's own softplus returns z above z = 20, an error of 2e-9 in float64."""
    return -log_sigmoid(-values)


def masked(values: Tensor, keep: Tensor) -> Tensor:
    """`values` in at least float32 and 0, without gradient, where `keep` (same shape, bool) is False.

    A `where`, not a product: an absent entry may hold inf or NaN.
    """
    return at_least_float32(values).where(keep, 0.0)


def reference_of(batch: LossInputs, objective: str) -> Tensor:
    """batch.ref_logps (G, K). Raises ValueError when the trainer did not provide them."""
    return required(batch.ref_logps, "ref_logps", objective)


def ratios_of(batch: LossInputs, objective: str) -> Tensor:
    """log pi - log ref of every completion, (G, K), nats; 0 where absent. Raises ValueError without a reference."""
    return masked(batch.logps, batch.present) - masked(reference_of(batch, objective), batch.present)


def required(value: Tensor | None, what: str, objective: str) -> Tensor:
    """`value`. Raises ValueError naming the field `what` where the trainer did not provide it."""
    if value is None:
        raise ValueError(f"{objective} needs LossInputs.{what}, which is missing")
    return value


def paired(batch: LossInputs, objective: str) -> Tensor:
    """(G,) bool: the groups with a chosen (column 0) and a rejected (column 1) completion.

    Raises UserError where a group has more than two completions: ignoring the others would be silent.
    """
    columns = batch.present.shape[1]
    if columns < 2:
        return batch.present.new_zeros(len(batch.present))
    if columns > 2 and bool(batch.present[:, 2:].any()):
        raise UserError(f"objective: {objective} compares pairs, but a group has up to {columns} completions; set "
                        "negatives=uniform (or mc, hardest, easiest) with negatives.m=1, or use objective=rnce")
    return batch.present[:, 0] & batch.present[:, 1]


def column(values: Tensor, index: int, keep: Tensor) -> Tensor:
    """Column `index` of (G, K) as (G,): 0 where `keep` (G,) is False or where there is no such column."""
    if index >= values.shape[1]:
        return at_least_float32(values.new_zeros(len(values)))
    return masked(values[:, index], keep)


def both(values: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """The columns 0 and 1 of (G, K), each (G,), as `column` gives them."""
    return column(values, 0, keep), column(values, 1, keep)


def row_means(values: Tensor, keep: Tensor) -> Tensor:
    """(G,) means over the kept entries of each row of (G, K); 0 where there is none."""
    return masked(values, keep).sum(dim=1) / keep.sum(dim=1).clamp(min=1)


def detached(**values: Tensor) -> dict[str, Tensor]:
    """Metrics without their graph; booleans become 0.0 and 1.0."""
    return {name: at_least_float32(v.detach()) if v.is_floating_point() else v.float() for name, v in values.items()}


def comparison(chosen: Tensor, rejected: Tensor, **more: Tensor) -> dict[str, Tensor]:
    """The metrics of a comparison of two rewards (G,); `more` stands beside them or in place of one."""
    return detached(**{"rewards_chosen": chosen, "rewards_rejected": rejected, "margin": chosen - rejected,
                       "accuracy": chosen > rejected, **more})


@dataclass(frozen=True)
class Pairs:
    """The pairs of a batch, all (G,): zeros where a group is not `usable` because it lacks one of its two."""

    usable: Tensor
    chosen: Tensor
    rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor

    @property
    def lengths(self) -> tuple[Tensor, Tensor]:
        return self.chosen_lengths, self.rejected_lengths

    def sides(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """What (G, K) values say of the two completions, each (G,)."""
        return both(values, self.usable)


def pairs_of(batch: LossInputs, objective: str) -> Pairs:
    """The policy's side of every pair. Raises UserError for groups of more than two completions."""
    usable = paired(batch, objective)
    return Pairs(usable, *both(batch.logps, usable), *both(batch.lengths, usable))


def with_anchor(batch: LossInputs, objective: str, against: str = "reference") -> tuple[Pairs, Four]:
    """The pairs, and their four log-probs (G,): chosen and rejected under the policy, then under the frozen model,
    which is the "reference" or the "previous" policy.

    Raises UserError for groups of more than two completions, ValueError where the trainer did not provide the latter.
    """
    name = {"reference": "ref_logps", "previous": "previous_logps"}[against]
    table = required(getattr(batch, name), name, objective)
    pairs = pairs_of(batch, objective)
    return pairs, (pairs.chosen, pairs.rejected, *pairs.sides(table))


def log_ratios(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b), the log-ratios of the two completions, nats; any one shape."""
    return (at_least_float32(chosen) - at_least_float32(ref_chosen),
            at_least_float32(rejected) - at_least_float32(ref_rejected))


def rewards_of(four: Four, beta: float) -> tuple[Tensor, Tensor]:
    """The implicit rewards beta a and beta b of the two completions, each (G,), from what `with_anchor` gives."""
    chosen, rejected = log_ratios(*four)
    return beta * chosen, beta * rejected


def averages(logps: Tensor, lengths: Tensor) -> Tensor:
    """Sums over tokens -> averages per token; a length below 1 counts as 1. Any one shape, nats per token."""
    return at_least_float32(logps) / lengths.clamp(min=1)


def smoothed_losses(logits: Tensor, label_smoothing: Tensor | float) -> Tensor:
    """-(1 - eps) log s(z) - eps log s(-z), elementwise."""
    return -(1.0 - label_smoothing) * log_sigmoid(logits) - label_smoothing * log_sigmoid(-logits)


def compared(usable: Tensor, losses: Tensor, chosen: Tensor, rejected: Tensor, **more: Tensor) -> Losses:
    """What `loss` returns: losses and metrics of two rewards, all (G,), 0 for groups that are not `usable`."""
    metrics = comparison(chosen, rejected, **more)
    return losses.where(usable, 0.0), {k: v.where(usable, 0.0) for k, v in metrics.items()}
