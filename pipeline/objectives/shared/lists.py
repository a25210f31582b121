"""What the objectives on lists share: which groups count, softmax over the present completions, metrics."""

from pipeline.errors import UserError
from pipeline.objectives.contract import Losses, Tensor
from pipeline.objectives.shared.pairs import at_least_float32, compared, masked, row_means


def comparable(present: Tensor) -> Tensor:
    """(G,) bool: the groups with a preferred completion (column 0) and at least one other. present: (G, K) bool."""
    return present[:, 0] & present[:, 1:].any(dim=1)


def laid_out(present: Tensor, objective: str, columns: tuple[str, ...], more: bool = False) -> Tensor:
    """(G,) bool: the groups that have every one of `columns`, what each completion is in order.

    With `more`, the last may be repeated. Groups of one are no group of this kind: False, not an error.
    Raises UserError where a group has another number of completions.
    """
    import torch

    number = len(columns)
    places = torch.arange(1, present.shape[1] + 1, device=present.device)
    widths = (present * places).amax(dim=1)
    wrong = (widths > 1) & ((widths < number) | ((widths > number) & (not more)))
    if bool(wrong.any()):
        raise UserError(f"objective: {objective} needs groups of {number}{' or more' if more else ''} completions, in "
                        f"this order: {', '.join(columns)}; found a group of {int(widths[wrong][0])}; build such "
                        "groups or choose another objective")
    if present.shape[1] < number:
        return present.new_zeros(len(present))
    return present[:, :number].all(dim=1)


def log_softmax_over(values: Tensor, present: Tensor) -> Tensor:
    """Log-softmax over the present entries of each row, 0 where absent. values, present (bool), result: (G, K)."""
    logits = masked(values, present)
    # A row without any entry keeps its zeros: all -inf would put NaN into the gradient.
    logits = logits.masked_fill(~present & present.any(dim=1, keepdim=True), float("-inf"))
    return masked(logits.log_softmax(dim=1), present)


def soft_labels(scores: Tensor, present: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """softmax(R / temperature) over the present completions and its logarithm, both (G, K), without gradient.

    scores: (G, K) rewards; temperature: > 0, in their unit. Absent: 0 in both.
    """
    logs = log_softmax_over(at_least_float32(scores.detach()) / temperature, present)
    return masked(logs.exp(), present), logs


def compared_list(usable: Tensor, present: Tensor, losses: Tensor, rewards: Tensor, **more: Tensor) -> Losses:
    """What `loss` returns for lists: losses and metrics (G,), 0 where not `usable`.

    rewards_rejected is the mean over the other completions, accuracy whether y_0 is above the best of them.
    """
    rewards, others = masked(rewards.detach(), present), present[:, 1:]
    above = ((rewards[:, :1] > rewards[:, 1:]) | ~others).all(dim=1)
    return compared(usable, losses, rewards[:, 0], row_means(rewards[:, 1:], others), accuracy=above, **more)
