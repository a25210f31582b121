"""Forward over groups: the LM head runs only where a completion token is predicted.

A group becomes K rows `prompt + completion`, padded on the right. With a causal model no token sees what comes after
it, so no attention mask is needed and the fast causal kernel is used; what the padded positions hold is never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pipeline.records import UserError
from pipeline.training.data import Example


@dataclass(frozen=True)
class Rows:
    """G groups as R rows of L tokens, and where their N completion tokens are."""

    input_ids: Tensor  # (R, L) int64, padded on the right
    predict: Tensor  # (N,) int64 into the flattened (R * L), the positions that predict a completion token
    targets: Tensor  # (N,) int64, the tokens predicted
    slot: Tensor  # (N,) int64 into the flattened (G * K * T), one place per completion token
    group: Tensor  # (N,) int64
    column: Tensor  # (N,) int64
    lengths: Tensor  # (G, K) int64, 0 where absent
    longest: int  # T, tokens of the longest completion

    @property
    def present(self) -> Tensor:
        return self.lengths > 0


def collate(examples: Sequence[Example], device: torch.device | str = "cpu", pad: int = 0) -> Rows:
    """Lay groups out as rows. The order of tokens is group by group, completion by completion."""
    width = max(e.longest for e in examples)
    most = max(len(e.completions) for e in examples)
    longest = max(len(c) for e in examples for c in e.completions)
    ids = np.full((sum(len(e.completions) for e in examples), width), pad, np.int64)
    lengths = np.zeros((len(examples), most), np.int64)
    predict, targets, slot, row = [], [], [], 0
    for g, e in enumerate(examples):
        for k, completion in enumerate(e.completions):
            prompt = e.prompt_of(k)  # completions may have prompts of their own
            start, n = len(prompt), len(completion)
            ids[row, :start], ids[row, start:start + n] = prompt, completion
            lengths[g, k] = n
            predict.append(np.arange(start - 1, start - 1 + n) + row * width)
            slot.append(np.arange(n) + (g * most + k) * longest)
            targets.append(completion)
            row += 1

    def put(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(device)

    slots = put(slot)
    return Rows(torch.from_numpy(ids).to(device), put(predict), put(targets), slots, slots // (most * longest),
                slots // longest % most, torch.from_numpy(lengths).to(device), longest)


def hidden_at_predictions(model: Any, rows: Rows) -> Tensor:
    """(N, H) hidden states, only at the positions that predict a completion token."""
    states = model.base_model(input_ids=rows.input_ids, use_cache=False).last_hidden_state
    # index_select: its backward adds each row once, so it is deterministic on a GPU too
    return states.reshape(-1, states.shape[-1]).index_select(0, rows.predict)


def layers_at_predictions(model: Any, rows: Rows) -> Tensor:
    """(N, layers, H) hidden states behind every transformer layer, only where a completion token is predicted."""
    states = model.base_model(input_ids=rows.input_ids, use_cache=False, output_hidden_states=True).hidden_states
    return torch.stack([s.reshape(-1, s.shape[-1]).index_select(0, rows.predict) for s in states[1:]], dim=1)


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """(N, V) logits, with what Gemma-, Cohere- and Granite-like models do after their head."""
    logits: Tensor = model.get_output_embeddings()(hidden)
    config = model.config
    if getattr(config, "logit_scale", None) is not None:
        logits = logits * config.logit_scale
    if getattr(config, "logits_scaling", None) is not None:
        logits = logits / config.logits_scaling
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


class _TokenLogps(torch.autograd.Function):
    """log softmax at the targets in float32, keeping the logits in their own precision and no second copy."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:  # (N, V), (N,) -> (N,) float32
        logps = -functional.cross_entropy(logits.float(), targets, reduction="none")
        ctx.save_for_backward(logits, targets, logps)
        return logps

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        logits, targets, logps = ctx.saved_tensors
        at = targets[:, None]
        # logp = logit[target] - logsumexp, so logsumexp needs no second pass over the vocabulary
        logsumexp = logits.gather(1, at).float() - logps[:, None]
        full = logits.float().sub_(logsumexp).exp_().mul_(-gradient[:, None])
        full.scatter_add_(1, at, gradient[:, None])
        return full.to(logits.dtype), None


def token_logps(model: Any, hidden: Tensor, targets: Tensor, logits_per_chunk: int) -> Tensor:
    """(N,) float32 log-probs of the targets, nats.

    Where N x V is above `logits_per_chunk` the head runs chunk by chunk and again in the backward pass, so that
    (tokens, vocabulary) is never held at once.
    """
    vocabulary = model.get_output_embeddings().weight.shape[0]

    def some(part: Tensor, answers: Tensor) -> Tensor:
        return _TokenLogps.apply(head_logits(model, part), answers)  # type: ignore[no-any-return]

    if hidden.shape[0] * vocabulary <= logits_per_chunk:
        return some(hidden, targets)
    size = max(1, logits_per_chunk // vocabulary)
    pieces = zip(hidden.split(size), targets.split(size), strict=True)
    return torch.cat([checkpoint(some, h, t, use_reentrant=False) for h, t in pieces])


def positions(rows: Rows) -> Tensor:
    """(N,) int64, the index of each token in its completion."""
    return rows.slot % rows.longest


def sums(rows: Rows, per_token: Tensor) -> Tensor:
    """(G, K) float32 sums of (N,) token values over each completion; 0 where absent.

    Placed in a padded grid and summed along it: unlike a scatter-add, the order of additions is fixed on every device.
    """
    groups, most = rows.lengths.shape
    grid = per_token.new_zeros(groups * most * rows.longest, dtype=torch.float32)
    grid = grid.index_copy(0, rows.slot, per_token.float())
    return grid.view(groups, most, rows.longest).sum(2)


def group_logps(model: Any, rows: Rows, logits_per_chunk: int) -> Tensor:
    """(G, K) float32 sums of completion log-probs, nats; 0 where absent."""
    return sums(rows, token_logps(model, hidden_at_predictions(model, rows), rows.targets, logits_per_chunk))


@torch.no_grad()
def check_head(model: Any) -> None:
    """Compare our head with the model's own forward on a few tokens. Raises UserError where they part.

    Architectures differ in what they do between the last hidden state and the logits; a wrong guess would train a
    wrong model without a word.
    """
    device = next(model.parameters()).device
    ids = torch.arange(8, device=device)[None] % model.get_input_embeddings().weight.shape[0]
    own = model(input_ids=ids, use_cache=False).logits.float()
    ours = head_logits(model, model.base_model(input_ids=ids, use_cache=False).last_hidden_state).float()
    if not torch.allclose(own, ours, atol=1e-3, rtol=1e-3):
        name = type(model).__name__
        raise UserError(f"model: {name} changes its logits after the LM head in a way the training core does not know "
                        f"(largest difference {(own - ours).abs().max():.3g}); use another architecture")
