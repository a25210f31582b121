"""An objective on groups: what it sees, the terms beside it, the negatives drawn for it, what it carries along."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.config import Part
from pipeline.lm import forward
from pipeline.lm.examples import Example, columns
from pipeline.lm.forward import Rows, device_of, padded
from pipeline.lm.head import Reductions, reduced, token_logps
from pipeline.lm.packed import unique_tokens
from pipeline.negatives import contract
from pipeline.objectives.contract import Auxiliary, LossInputs, Needs, Objective, TokenInputs, needs_of
from pipeline.training import negatives
from pipeline.training.gradients import BatchFacts, Metrics
from pipeline.training.inputs import token_uniforms
from pipeline.training.negatives import NegativeDraw

_DOT = "__"  # a module's parameters may not have dots in their names
PARAMETERS = "objective_parameters"  # the model's submodule that holds what an objective trains beside it


@dataclass
class PolicyTask:
    """Train a causal LM with `objective`, `auxiliary` terms beside it, and `negatives` drawn at every step."""

    objective: Part[Objective]
    negatives: Part[contract.Draw] | None
    seed: int
    tokens_per_batch: int
    logits_per_chunk: int
    auxiliary: Part[Auxiliary] | None = None
    reference_model: Any | None = None
    state: dict[str, Tensor] = field(default_factory=dict)  # of the objective; changed by every step

    needs: Needs = field(init=False)
    sees_tokens: bool = field(init=False)
    normalise: str = field(init=False)  # "groups" or "tokens": what the loss of a global batch is divided by
    whole: bool = field(init=False)  # the loss of a group depends on the others of its global batch
    drawn_before: NegativeDraw | None = field(init=False, default=None)  # negatives of the global batch, all at once
    drawn_apart: NegativeDraw | None = field(init=False, default=None)  # negatives micro-batch by micro-batch

    def __post_init__(self) -> None:
        self.needs = needs_of(self.objective, self.auxiliary)
        self.normalise = self.objective.of(self.objective.plugin.normalise)
        self.sees_tokens, self.whole = self.needs.tokens, self.needs.batch
        if self.negatives is None:
            return
        draw = NegativeDraw(self.negatives, self.seed, self.tokens_per_batch, self.logits_per_chunk)
        # apart where the loss of a group asks nothing of the others: their completions, how many tokens were drawn
        if self.normalise != "groups" or self.whole or self.needs.mismatched or self.sees_tokens:
            self.drawn_before = draw
        else:
            self.drawn_apart = draw

    def facts(self, batch: Sequence[Example]) -> BatchFacts:
        return BatchFacts.of(batch, self.needs.mismatched)

    def prepare(self, model: Any, batch: list[Example], step: int) -> tuple[list[Example], Metrics]:
        """The global batch that is trained on: completion 0 and the negatives drawn, where all are drawn at once."""
        if self.drawn_before is None:
            return batch, {}
        return negatives.draw(model, batch, step, self.drawn_before)

    def cost(self, example: Example) -> int:
        """Unique tokens that a micro-batch has to hold for the example."""
        own = unique_tokens(example) if self.drawn_apart is None else self.drawn_apart.cost(example)
        return own if example.rationale is None else own + unique_tokens(example.rationale)

    def losses(self, model: Any, examples: Sequence[Example], step: int,
               facts: BatchFacts) -> tuple[Tensor, Metrics, Sequence[Example]]:
        """(G,) losses with gradient, (G,) metrics without, and the groups with the completions that they are of."""
        if self.drawn_apart is None:
            return *self.loss(self.inputs(model, examples, step, facts)), examples
        if facts.one_prompt and negatives.can_grow(model, self.drawn_apart):
            drawn, logps, metrics = negatives.draw_and_run(model, examples, step, self.drawn_apart)
            seen = self._known(model, drawn, logps, facts)
        else:
            drawn, metrics = negatives.draw(model, examples, step, self.drawn_apart)
            seen = self.inputs(model, drawn, step, facts)
        losses, own = self.loss(seen)
        return losses, {**own, **metrics}, drawn

    def inputs(self, model: Any, examples: Sequence[Example], step: int, facts: BatchFacts) -> LossInputs:
        """Run the policy (and the reference, where it is needed live) and gather what the needs name."""
        needs = self.needs
        rows = forward.collate(examples, device_of(model))
        hidden = forward.hidden_at_predictions(model, rows)
        ref_hidden = None
        if needs.divergences or needs.reference_tokens:
            with torch.no_grad():
                ref_hidden = forward.hidden_at_predictions(self.reference_model, rows)
        other = (self.reference_model, ref_hidden) if ref_hidden is not None and needs.divergences else None
        seen = reduced(model, hidden, rows.targets, self.logits_per_chunk, needs.top, needs.sum_squares, other)
        tokens = self._tokens(rows, step, seen, ref_hidden) if self.sees_tokens else None
        mismatched = self._mismatched(model, examples, facts) if needs.mismatched else (None, None)
        known = self._known(model, examples, forward.sums(rows, seen.logps), facts)
        return replace(known, tokens=tokens, mismatched_logps=mismatched[0], mismatched_ref_logps=mismatched[1])

    def _known(self, model: Any, examples: Sequence[Example], logps: Tensor, facts: BatchFacts) -> LossInputs:
        """What the needs name where (G, K) `logps` are there: columns, and a pass over the rationales."""
        needs, device = self.needs, logps.device
        lengths = forward.lengths_of(examples, device)
        labels = None  # among labelled groups one without counts as preferred
        if any(e.label is not None for e in examples):
            labels = torch.tensor([e.label is not False for e in examples], device=device)
        return LossInputs(
            logps=logps, lengths=lengths, present=lengths > 0, labels=labels,
            ref_logps=padded([e.ref_logps for e in examples], device) if needs.reference else None,
            previous_logps=padded([e.previous_logps for e in examples], device) if needs.previous else None,
            scores=padded([e.scores for e in examples], device) if needs.scores else None,
            rationale_logps=self.rationale_logps(model, examples) if needs.rationale else None,
            explained=torch.tensor([e.rationale is not None for e in examples], device=device) if needs.rationale
            else None,
            mean_chosen_length=facts.mean_chosen_length, mean_wanted_length=facts.mean_wanted_length,
            mean_length=facts.mean_length, tokens_per_group=facts.tokens_per_group, state=dict(self.state),
            parameters=parameters_of(model))

    def _tokens(self, rows: Rows, step: int, seen: Reductions, ref_hidden: Tensor | None) -> TokenInputs:
        needs, uniforms, ref_logps, ref_layers = self.needs, None, seen.ref_logps, None
        if needs.uniforms:
            uniforms = torch.from_numpy(token_uniforms(rows.examples, self.seed, step)).to(rows.targets.device)
        with torch.no_grad():
            if ref_logps is None and ref_hidden is not None:
                ref_logps = token_logps(self.reference_model, ref_hidden, rows.targets, self.logits_per_chunk)
            if needs.reference_hidden:
                ref_layers = forward.layers_at_predictions(self.reference_model, rows).float()
        return TokenInputs(
            rows.targets, rows.group, rows.column, forward.positions(rows), seen.logps, uniforms, seen.target_logits,
            seen.top_logits, seen.top_ids, seen.log_sum_squares, seen.divergences, ref_logps, ref_layers)

    @torch.no_grad()
    def _mismatched(self, model: Any, examples: Sequence[Example], facts: BatchFacts) -> tuple[Tensor, Tensor]:
        """(G,) log-probs of each group's mismatched completions under the policy and the reference: the mean over all
        completions of its partner, preferred or not, so that the KL point is taken over the answers trained on.
        """
        swapped = [Example(e.id, e.prompt, facts.partners[e.id].completions) for e in examples]
        rows = forward.collate(swapped, device_of(model))
        number = rows.present.sum(1)
        of_policy, of_reference = (forward.group_logps(m, rows, self.logits_per_chunk).sum(1) / number
                                   for m in (model, self.reference_model))
        return of_policy, of_reference

    def logps(self, model: Any, examples: Sequence[Example]) -> Tensor:
        """(G, K) log-probs with gradient, nothing else."""
        return forward.group_logps(model, forward.collate(examples, device_of(model)), self.logits_per_chunk)

    def rationale_logps(self, model: Any, examples: Sequence[Example]) -> Tensor:
        """(G,) float32 log-probs of the rationales with gradient, 0 where a group has none.

        Where none has one a preferred completion runs for nothing: processes that share sharded weights make as many
        passes each.
        """
        places = [i for i, e in enumerate(examples) if e.rationale is not None]
        rationales = [e.rationale for e in examples if e.rationale is not None]
        logps = self.logps(model, rationales or [columns(examples[0], [0])])[:len(places), 0]
        index = torch.tensor(places, dtype=torch.int64, device=logps.device)
        return logps.new_zeros(len(examples)).index_copy(0, index, logps)

    def loss(self, inputs: LossInputs) -> tuple[Tensor, Metrics]:
        """(G,) losses and metrics of inputs gathered before. Carries the objective's state on by one batch."""
        metrics, whole = common_metrics(inputs), inputs
        if self.auxiliary is not None:
            inputs = self.auxiliary.plugin.before(inputs, self.auxiliary.settings)
        if self.state and self.objective.plugin.update is not None:
            with torch.no_grad():
                self.state.update(self.objective.plugin.update(inputs, self.objective.settings))
            inputs.state.update(self.state)
        losses, own = self.objective.plugin.loss(inputs, self.objective.settings)
        if self.auxiliary is not None:
            added, beside = self.auxiliary.plugin.terms(whole, self.auxiliary.settings)
            if self.normalise == "tokens":  # the sum will be divided by the batch's tokens; terms average over groups
                assert inputs.tokens_per_group is not None, "a fact of every batch"
                added = added * inputs.tokens_per_group
            losses, own = losses + added, {**own, **beside}
        return losses, {**metrics, **{k: v.detach() for k, v in own.items()}}


def first_state(objective: Part[Objective], device: torch.device) -> dict[str, Tensor]:
    """What the objective carries from step to step, as it starts; empty for most. In float64: a mean of many examples
    moves by less than float32 can hold.
    """
    values = objective.plugin.state(objective.settings)
    return {name: torch.tensor(float(value), dtype=torch.float64, device=device) for name, value in values.items()}


def add_parameters(model: Any, objective: Part[Objective]) -> None:
    """Hang what the objective trains beside the policy onto the model, so that optimizer, clipping, checkpoints and
    distribution treat both alike. `remove_parameters` takes it off again.
    """
    made = objective.plugin.parameters
    if made is None:
        return
    config = model.config.get_text_config()
    values = made(config.hidden_size, config.num_hidden_layers, objective.settings)
    device = device_of(model)
    trained = {name.replace(".", _DOT): torch.nn.Parameter(value.to(device)) for name, value in values.items()}
    model.add_module(PARAMETERS, torch.nn.ParameterDict(trained))


def parameters_of(model: Any) -> dict[str, Tensor]:
    return {name.replace(_DOT, "."): value for name, value in getattr(model, PARAMETERS, {}).items()}


def remove_parameters(model: Any) -> dict[str, Tensor]:
    """Take them off the model. Returns them, detached."""
    values = {name: value.detach() for name, value in parameters_of(model).items()}
    if values:
        delattr(model, PARAMETERS)
    return values


def common_metrics(inputs: LossInputs) -> Metrics:
    """What every objective reports: log-probs and lengths of both sides, and the reference's where there is one.

    `reference_kl` is the mean of log reference - log policy over a group's completions, nats per completion: the plain
    estimate (k1) of KL(reference || policy) where the reference wrote them, else how far the policy drifted on them.
    """
    with torch.no_grad():
        logps = inputs.logps.detach()
        found = {"chosen_logps": logps[:, 0], "chosen_length": inputs.lengths[:, 0].float()}
        if inputs.ref_logps is not None:
            found["chosen_log_ratio"] = logps[:, 0] - inputs.ref_logps[:, 0]
            found["reference_kl"] = (inputs.ref_logps - logps).sum(1) / inputs.present.sum(1)  # both 0 where absent
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
