"""What the objectives have in common: precision, the absent completions, the metrics of a comparison."""

from __future__ import annotations

from pipeline.errors import UserError
from pipeline.objectives.contract import LossInputs, Tensor


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
    import torch

    return torch.where(keep, at_least_float32(values), 0.0)


def reference_of(batch: LossInputs, objective: str) -> Tensor:
    """batch.ref_logps (G, K). Raises ValueError when the trainer did not provide them."""
    return required(batch.ref_logps, "ref_logps", objective)


def required(value: Tensor | None, what: str, objective: str) -> Tensor:
    """`value`. Raises ValueError naming the field `what` where the trainer did not provide it."""
    if value is None:
        raise ValueError(f"{objective} needs LossInputs.{what}, which is missing")
    return value


def paired(batch: LossInputs, objective: str) -> Tensor:
    """(G,) bool: the groups with a chosen (column 0) and a rejected (column 1) completion.

    Raises UserError where a group has more than two completions: ignoring the others would be silent.
    """
    import torch

    columns = batch.present.shape[1]
    if columns < 2:
        return torch.zeros_like(batch.present[:, 0])
    if columns > 2 and bool(batch.present[:, 2:].any()):
        raise UserError(
            f"objective: {objective} compares pairs, but a group has up to {columns} completions; set "
            "negatives=uniform (or mc, hardest, easiest) with negatives.m=1, or use objective=rnce"
        )
    return batch.present[:, 0] & batch.present[:, 1]


def column(values: Tensor, index: int, keep: Tensor) -> Tensor:
    """Column `index` of (G, K) as (G,): 0 where `keep` (G,) is False or where there is no such column."""
    import torch

    if index >= values.shape[1]:
        return torch.zeros_like(at_least_float32(values[:, 0]))
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
