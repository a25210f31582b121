"""Batches for tests of objectives, in float64 unless a table says otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pipeline.lm.head import Plan, reductions
from pipeline.objectives.contract import LossInputs, TokenInputs

Table = list[list[float]]


def table(values: Table | torch.Tensor | None) -> torch.Tensor | None:
    if values is None or isinstance(values, torch.Tensor):
        return values
    return torch.tensor(values, dtype=torch.float64)


def batch_of(
    logps: Table | torch.Tensor,
    ref_logps: Table | torch.Tensor | None = None,
    *,
    present: list[list[bool]] | None = None,
    lengths: list[list[int]] | None = None,
    scores: Table | torch.Tensor | None = None,
    previous: Table | torch.Tensor | None = None,
    **more: Any,
) -> LossInputs:
    """Groups with these log-probs; every completion present and 5 tokens long unless said otherwise."""
    values = table(logps)
    assert values is not None
    there = torch.ones(values.shape, dtype=torch.bool) if present is None else torch.tensor(present)
    long = torch.full(values.shape, 5) if lengths is None else torch.tensor(lengths)
    return LossInputs(values, torch.where(there, long, 0), there, table(ref_logps), scores=table(scores),
                      previous_logps=table(previous), **more)


def token_batch(
    logits: torch.Tensor, ref_logits: torch.Tensor, targets: list[int], group: list[int], column: list[int], **more: Any
) -> LossInputs:
    """Groups whose completions consist of these tokens: (N, V) logits, of which the token view has what the trainer
    takes from them, by autograd; `more` goes to the token view, `parameters`, `scores` and `labels` to the batch.
    """
    ids, groups, columns = (torch.tensor(v) for v in (targets, group, column))
    of_batch = {name: more.pop(name) for name in ("parameters", "scores", "labels") if name in more}
    seen = view_of(logits, ids, ref_logits)
    shape = (int(groups.max()) + 1, int(columns.max()) + 1)

    def sums(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(shape[0] * shape[1]).index_add(0, groups * shape[1] + columns, values).view(shape)

    lengths = sums(torch.ones(len(ids))).long()
    tokens = TokenInputs(ids, groups, columns, torch.arange(len(ids)), **seen, **more)
    return LossInputs(sums(seen["logps"]), lengths, lengths > 0, sums(seen["ref_logps"]), tokens=tokens, **of_batch)


def view_of(logits: torch.Tensor, targets: torch.Tensor, ref_logits: torch.Tensor | None = None) -> dict[str, Any]:
    """What the token view has of (N, V) logits: every logit among the largest, log-probs, divergences."""
    return reductions(logits, targets, Plan(1, 1, logits.shape[1], sum_squares=True), ref_logits)._asdict()


def gradient(loss: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor) -> torch.Tensor:
    """d sum(loss) / d at."""
    variable = at.detach().clone().requires_grad_()
    loss(variable).sum().backward()
    assert variable.grad is not None
    return variable.grad
