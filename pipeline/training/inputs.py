"""What an objective sees of a micro-batch, and of a global batch joined from its micro-batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.lm import forward
from pipeline.lm.examples import Example
from pipeline.lm.forward import device_of
from pipeline.lm.head import Reductions, reduced
from pipeline.objectives.contract import LossInputs, Needs, TokenInputs
from pipeline.stage import derive_seed

_COLUMNS = ("logps", "lengths", "present", "ref_logps", "previous_logps", "scores")  # (G, K)
_GROUPS = ("labels", "mismatched_logps", "mismatched_ref_logps")  # (G,)


@dataclass(frozen=True)
class BatchFacts:
    """The global batch a micro-batch belongs to."""

    mean_chosen_length: float  # tokens of completion 0
    mean_length: float  # tokens of all completions
    one_prompt: bool  # every group has one prompt, and a completion beside the first
    partners: dict[str, Example]  # group id -> the group whose completions are its mismatched ones

    @classmethod
    def of(cls, batch: Sequence[Example], mismatched: bool = False) -> BatchFacts:
        """Facts of `batch`; with `mismatched` also a partner with another prompt for every group."""
        chosen = sum(len(e.completions[0]) for e in batch) / len(batch)
        one_prompt = all(e.prompts is None and len(e.completions) > 1 for e in batch)
        return cls(chosen, sum(e.completion_tokens for e in batch) / len(batch), one_prompt,
                   partners(batch) if mismatched else {})


def partners(batch: Sequence[Example]) -> dict[str, Example]:
    """For every group the nearest one before it (cyclic) that has another prompt: the mismatch of KTO's KL point.

    Raises UserError where a group has none.
    """
    found: dict[str, Example] = {}
    for i, one in enumerate(batch):
        others = (batch[i - back] for back in range(1, len(batch)))
        partner = next((o for o in others if not np.array_equal(o.prompt, one.prompt)), None)
        if partner is None:
            raise UserError(f"objective: KTO's KL estimate needs another prompt in the batch, but group {one.id!r} is "
                            f"in a global batch of {len(batch)} with only one prompt; raise "
                            "trainer.preference.batch_size or choose another objective.reference_point")
        found[one.id] = partner
    return found


@dataclass(frozen=True)
class InputRequest:
    """Where the inputs come from: what is needed, by which models, drawn from which seed."""

    needs: Needs
    seed: int
    logits_per_chunk: int
    reference_model: Any | None = None  # on the device; only where needs.live_reference


def loss_inputs(
    request: InputRequest, model: Any, examples: Sequence[Example], step: int, facts: BatchFacts,
    state: dict[str, Tensor], parameters: dict[str, Tensor],
) -> LossInputs:
    """Run the policy (and the reference, where it is needed live) and gather what the needs name."""
    needs, device = request.needs, device_of(model)
    rows = forward.collate(examples, device)
    hidden = forward.hidden_at_predictions(model, rows)
    ref_hidden = None
    if needs.divergences or needs.reference_tokens:
        with torch.no_grad():
            ref_hidden = forward.hidden_at_predictions(request.reference_model, rows)
    other = (request.reference_model, ref_hidden) if ref_hidden is not None and needs.divergences else None
    seen = reduced(model, hidden, rows.targets, request.logits_per_chunk, needs.top, needs.sum_squares, other)
    tokens = _tokens(request, rows, examples, step, seen, ref_hidden) if needs.tokens else None
    mismatched = _mismatched(request, model, examples, facts) if needs.mismatched else (None, None)
    known = known_inputs(needs, examples, forward.sums(rows, seen.logps), facts, state, parameters)
    return dataclasses.replace(known, tokens=tokens, mismatched_logps=mismatched[0], mismatched_ref_logps=mismatched[1])


def known_inputs(
    needs: Needs, examples: Sequence[Example], logps: Tensor, facts: BatchFacts, state: dict[str, Tensor],
    parameters: dict[str, Tensor],
) -> LossInputs:
    """What the needs name where no pass is left to make: (G, K) `logps` are there, and the rest are columns."""
    device = logps.device
    lengths = lengths_of(examples, device)
    return LossInputs(
        logps=logps,
        lengths=lengths,
        present=lengths > 0,
        ref_logps=_table([e.ref_logps for e in examples], device) if needs.reference else None,
        previous_logps=_table([e.previous_logps for e in examples], device) if needs.previous else None,
        scores=_table([e.scores for e in examples], device) if needs.scores else None,
        labels=labels(examples, device),
        mean_chosen_length=facts.mean_chosen_length,
        mean_length=facts.mean_length,
        state=state,
        parameters=parameters,
    )


def _tokens(
    request: InputRequest, rows: forward.Rows, examples: Sequence[Example], step: int, seen: Reductions,
    ref_hidden: Tensor | None,
) -> TokenInputs:
    needs, device = request.needs, rows.targets.device
    uniforms, ref_logps, ref_layers = None, seen.ref_logps, None
    if needs.uniforms:
        uniforms = torch.from_numpy(token_uniforms(examples, request.seed, step)).to(device)
    with torch.no_grad():
        if ref_logps is None and ref_hidden is not None:
            ref_logps = forward.token_logps(request.reference_model, ref_hidden, rows.targets, request.logits_per_chunk)
        if needs.reference_hidden:
            ref_layers = forward.layers_at_predictions(request.reference_model, rows).float()
    return TokenInputs(
        rows.targets, rows.group, rows.column, forward.positions(rows), seen.logps, uniforms, seen.target_logits,
        seen.top_logits, seen.top_ids, seen.log_sum_squares, seen.divergences, ref_logps, ref_layers)


def token_uniforms(examples: Sequence[Example], seed: int, step: int) -> np.ndarray:
    """(N,) float32 in [0, 1) for every completion token, group after group, completion after completion."""
    drawn = [generator(seed, "tokens", step, e.id).random(e.completion_tokens, np.float32) for e in examples]
    return np.concatenate(drawn)


def generator(seed: int, *what: object) -> np.random.Generator:
    """Of what is drawn for one group: no position, worker or micro-batch changes it."""
    return np.random.Generator(np.random.Philox(key=derive_seed(seed, *what)))


@torch.no_grad()
def _mismatched(
    request: InputRequest, model: Any, examples: Sequence[Example], facts: BatchFacts
) -> tuple[Tensor, Tensor]:
    """(G,) log-probs of each group's mismatched completions under the policy and the reference: the mean over all
    completions of its partner, preferred or not, so that the KL point is taken over the answers that are trained on.
    """
    swapped = [Example(e.id, e.prompt, facts.partners[e.id].completions) for e in examples]
    rows = forward.collate(swapped, device_of(model))
    number = rows.present.sum(1)
    of_policy, of_reference = (forward.group_logps(m, rows, request.logits_per_chunk).sum(1) / number
                               for m in (model, request.reference_model))
    return of_policy, of_reference


def labels(examples: Sequence[Example], device: torch.device | str) -> Tensor | None:
    """(G,) bool, None where no group has a label. Among labelled ones a group without counts as preferred."""
    if all(e.label is None for e in examples):
        return None
    return torch.tensor([e.label is not False for e in examples], device=device)


def lengths_of(examples: Sequence[Example], device: torch.device | str) -> Tensor:
    """(G, K) int64 tokens of the completions; 0 where absent."""
    width = max(len(e.completions) for e in examples)
    return torch.tensor([[len(c) for c in e.completions] + [0] * (width - len(e.completions)) for e in examples],
                        device=device)


def reference(examples: Sequence[Example], device: torch.device | str) -> Tensor:
    """(G, K) float32 reference log-probs; 0 where absent."""
    return _table([e.ref_logps for e in examples], device)


def _table(values: Sequence[Sequence[float] | None], device: torch.device | str) -> Tensor:
    """(G, K) float32 from one row per group; 0 where absent."""
    table = np.zeros((len(values), max(len(v or ()) for v in values)), np.float32)
    for g, row in enumerate(values):
        assert row is not None, "fit_to_objective checks this"
        table[g, : len(row)] = row
    return torch.from_numpy(table).to(device)


def moved(inputs: LossInputs, device: torch.device | str) -> LossInputs:
    """The per-group part of `inputs` on another device, without what belongs to the model."""
    there: dict[str, Any] = {n: getattr(inputs, n) for n in (*_COLUMNS, *_GROUPS)}
    moved_there: dict[str, Any] = {n: None if v is None else v.to(device) for n, v in there.items()}
    return dataclasses.replace(inputs, tokens=None, state={}, parameters={}, **moved_there)


def joined(parts: Sequence[LossInputs], places: Sequence[Sequence[int]]) -> LossInputs:
    """The inputs of a global batch from those of its micro-batches; `places` are their groups' places in the batch.

    Token views are not joined: an objective over the whole batch sees sequences only.
    """
    order = torch.tensor([i for place in places for i in place]).argsort()
    width = max(p.logps.shape[1] for p in parts)

    def column(name: str) -> Tensor | None:
        values = [getattr(p, name) for p in parts]
        if any(v is None for v in values):
            return None
        wide = [torch.nn.functional.pad(v, (0, width - v.shape[1])) for v in values]
        return torch.cat(wide)[order.to(wide[0].device)]

    def flat(name: str) -> Tensor | None:
        values = [getattr(p, name) for p in parts]
        if all(v is None for v in values):
            return None
        # a micro-batch without any label beside one with some: unlabelled groups count as preferred
        full = [torch.ones_like(p.present[:, 0]) if v is None else v for p, v in zip(parts, values, strict=True)]
        return torch.cat(full)[order.to(full[0].device)]

    gathered: dict[str, Any] = {n: column(n) for n in _COLUMNS} | {n: flat(n) for n in _GROUPS}
    return dataclasses.replace(parts[0], tokens=None, **gathered)
