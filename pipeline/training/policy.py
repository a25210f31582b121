"""An objective on groups: builds what the loss may see, draws negatives, says how the loss is normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.build import Part
from pipeline.records import LossInputs, TokenInputs, UserError
from pipeline.training import batching, forward
from pipeline.training.data import Example, columns

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class PolicyTask:
    """Train a causal LM with `objective`, and `negatives` where some are drawn at every step."""

    objective: Part
    negatives: Part | None
    seed: int
    tokens_per_batch: int
    logits_per_chunk: int

    @property
    def normalise(self) -> str:
        """ "groups" or "tokens": what the loss of a global batch is divided by."""
        return str(self.objective.module.NORMALISE)

    def prepare(self, model: Any, batch: list[Example], step: int) -> tuple[list[Example], Metrics]:
        """Completion 0 and the negatives drawn for this step; without a `negatives` part the batch as it is."""
        if self.negatives is None:
            return batch, {}
        return draw_negatives(model, batch, step, self)

    def losses(self, model: Any, examples: Sequence[Example], step: int) -> tuple[Tensor, Metrics]:
        """(G,) losses with gradient and (G,) metrics without."""
        inputs = self.inputs(model, examples, step)
        losses, metrics = self.objective.module.loss(inputs, self.objective.settings)
        return losses, {**common_metrics(inputs), **{k: v.detach() for k, v in metrics.items()}}

    def inputs(self, model: Any, examples: Sequence[Example], step: int) -> LossInputs:
        """Run the policy and gather what the objective's NEEDS ask for."""
        needs = self.objective.module.NEEDS
        device = next(model.parameters()).device
        rows = forward.collate(examples, device)
        hidden = forward.hidden_at_predictions(model, rows)
        tokens = None
        if "tokens" in needs:
            logits = forward.head_logits(model, hidden).float()
            per_token = -torch.nn.functional.cross_entropy(logits, rows.targets, reduction="none")
            uniforms = torch.from_numpy(batching.token_uniforms(examples, self.seed, step)).to(device)
            tokens = TokenInputs(rows.targets, rows.group, rows.column, forward.positions(rows), per_token, uniforms,
                                 logits)
        else:
            per_token = forward.token_logps(model, hidden, rows.targets, self.logits_per_chunk)
        return LossInputs(
            logps=forward.sums(rows, per_token),
            lengths=rows.lengths,
            present=rows.present,
            ref_logps=reference(examples, device) if "reference" in needs else None,
            labels=labels(examples, device),
            tokens=tokens,
        )


def labels(examples: Sequence[Example], device: torch.device | str) -> Tensor | None:
    """(G,) bool, None where no group has a label. Among labelled ones a group without counts as preferred."""
    if all(e.label is None for e in examples):
        return None
    return torch.tensor([e.label is not False for e in examples], device=device)


def reference(examples: Sequence[Example], device: torch.device | str) -> Tensor:
    """(G, K) float32 reference log-probs; 0 where absent."""
    width = max(len(e.completions) for e in examples)
    table = np.zeros((len(examples), width), np.float32)
    for g, e in enumerate(examples):
        assert e.ref_logps is not None, "fit_to_objective checks this"
        table[g, : len(e.ref_logps)] = e.ref_logps
    return torch.from_numpy(table).to(device)


def common_metrics(inputs: LossInputs) -> Metrics:
    """What every objective reports: log-probs and lengths of both sides, and the reference's where there is one."""
    with torch.no_grad():
        logps = inputs.logps.detach()
        found = {"chosen_logps": logps[:, 0], "chosen_length": inputs.lengths[:, 0].float()}
        if inputs.ref_logps is not None:
            found["chosen_log_ratio"] = logps[:, 0] - inputs.ref_logps[:, 0]
        if logps.shape[1] > 1:
            found["rejected_logps"] = logps[:, 1]
            found["rejected_length"] = inputs.lengths[:, 1].float()
            margin = logps[:, 0] - logps[:, 1]
            if inputs.ref_logps is not None:
                found["rejected_log_ratio"] = logps[:, 1] - inputs.ref_logps[:, 1]
                margin = found["chosen_log_ratio"] - found["rejected_log_ratio"]
            found["logp_margin"] = margin
            found["accuracy"] = (margin > 0).float()
        return found


@torch.no_grad()
def draw_negatives(model: Any, batch: list[Example], step: int, task: PolicyTask) -> tuple[list[Example], Metrics]:
    """Score the dispreferred completions with the current policy, draw M of them, keep completion 0 and the drawn.

    No gradient goes through the draw; a group's draw is fixed by (seed, step, group id).
    """
    assert task.negatives is not None
    module, settings = task.negatives.module, task.negatives.settings
    device = next(model.parameters()).device
    width = max(len(e.completions) for e in batch)
    present = torch.tensor([[k < len(e.completions) for k in range(width)] for e in batch], device=device)
    refs = reference(batch, device) if all(e.ref_logps is not None for e in batch) else None
    logps = candidate_logps(model, batch, width, task) if module.NEEDS_LOGPS else None
    uniforms = torch.from_numpy(batching.column_uniforms(batch, task.seed, step)).to(device)
    indices, valid, metrics = module.draw(logps, refs, present, uniforms, settings)
    drawn = [columns(e, [0, *(k for k, ok in zip(ks, oks, strict=True) if ok)])
             for e, ks, oks in zip(batch, indices.tolist(), valid.tolist(), strict=True)]
    return drawn, metrics


def candidate_logps(model: Any, batch: list[Example], width: int, task: PolicyTask) -> Tensor:
    """(G, K) float32 log-probs of completions 1 .. K-1 under the current policy; column 0 is not scored and stays 0."""
    device = next(model.parameters()).device
    logps = torch.zeros(len(batch), width, device=device)
    candidates = [columns(e, range(1, len(e.completions))) for e in batch]
    for micro in batching.micro_batches(candidates, task.tokens_per_batch):
        rows = forward.collate([candidates[i] for i in micro], device)
        scored = forward.group_logps(model, rows, task.logits_per_chunk)
        logps[micro, 1:1 + scored.shape[1]] = scored
    return logps


def fit_to_objective(examples: Sequence[Example], objective: Part, negatives: Part | None) -> list[Example]:
    """Bring groups to the number of completions the objective takes. Raises UserError, all kinds of misfit at once.

    One that needs pairs takes groups of two, or of more where a `negatives` part draws one. One that needs only
    log-probs learns from demonstrations: it sees completion 0.
    """
    needs, name = objective.module.NEEDS, objective.module.__name__
    several = bool(needs & {"pairs", "lists"})
    problems = []
    if negatives is not None and not several:
        problems.append(f"negatives: {name} takes single completions, expected negatives=none")
    if negatives is not None and "lists" not in needs and negatives.settings.m != 1:
        problems.append(f"negatives.m: {negatives.settings.m} with {name}, which takes pairs, expected 1")
    short = [e for e in examples if several and len(e.completions) < 2]
    if short:
        problems.append(f"objective: {name} compares completions, but {len(short)} of {len(examples)} groups have one "
                        f"(first {short[0].id!r}); train on preference data or use an objective for demonstrations")
    long = [e for e in examples if len(e.completions) > 2]
    if long and "pairs" in needs and "lists" not in needs and negatives is None:
        problems.append(f"objective: {name} takes pairs, but {len(long)} of {len(examples)} groups have more than two "
                        f"completions (first {long[0].id!r}: {len(long[0].completions)}); set negatives= to draw one, "
                        "or use an objective for lists")
    unlabeled = [e for e in examples if "labels" in needs and e.label is None]
    if unlabeled:
        problems.append(f"objective: {name} needs labels, but {len(unlabeled)} of {len(examples)} groups have none "
                        f"(first {unlabeled[0].id!r})")
    bare = [e for e in examples if "reference" in needs and e.ref_logps is None]
    if bare:
        problems.append(f"objective: {name} needs reference log-probs, but {len(bare)} of {len(examples)} groups have "
                        f"none (first {bare[0].id!r}); give the step a `reference` input made by reference_logprobs")
    if problems:
        raise UserError(*problems)
    single = not needs & {"pairs", "lists", "tokens", "labels"}
    return [columns(e, [0]) for e in examples] if single else list(examples)
