"""What sft and train_preference do: load, check, train, write the folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline import columns, tables
from pipeline.config import Part, load_part
from pipeline.errors import UserError
from pipeline.lm import adapters, folders, forward, memory
from pipeline.lm import examples as data
from pipeline.lm.side_tables import SideTables
from pipeline.negatives.contract import Draw
from pipeline.objectives.contract import Auxiliary, Objective, needs_of
from pipeline.stage import Context
from pipeline.training import assembly, checks, distribute, optim, policy, throughput
from pipeline.training.distribute import World
from pipeline.training.loop import Job, fit


@dataclass(frozen=True)
class Parts:
    """The pluggable parts of a training run."""

    objective: Part[Objective]
    auxiliary: Part[Auxiliary] | None = None
    negatives: Part[Draw] | None = None

    @classmethod
    def load(cls, objective: dict[str, Any], auxiliary: dict[str, Any] | None = None,
             negatives: dict[str, Any] | None = None) -> Parts:
        return cls(load_part(objective, "objective", Objective),
                   None if auxiliary is None else load_part(auxiliary, "auxiliary", Auxiliary),
                   None if negatives is None else load_part(negatives, "negatives", Draw))


def train(
    context: Context, parts: Parts, score: str = "reward", keep: bool = False, weights: Sequence[float] = (),
) -> None:
    """Train the policy of `context` and write `model/` (and `optimizer/` with `keep`)."""
    runtime, trainer = context.runtime, context.settings.trainer
    source = context.one("model")
    world, device = distribute.join(runtime, folders.prepare_machine(runtime))
    adapters.require(trainer.adapter, device)
    if trainer.adapter.on and (context.optional("optimizer") or keep):
        raise UserError(f"trainer.adapter.kind: {trainer.adapter.kind} with an optimizer that runs through several "
                        "steps: each starts a new adapter, whose moments start at nothing; set it to none")
    needs = needs_of(parts.objective, parts.auxiliary)
    examples = load_examples(context, parts, score, weights, world)
    model = folders.load_policy(source, device, runtime, adapters.quantisation(trainer.adapter, trainer.precision))
    data.check_fits(examples, model.get_input_embeddings().weight.shape[0], folders.context_length(model))
    forward.prepare(model, runtime.share_prefix)
    assembly.adapt(model, trainer, runtime, context.seed)
    policy.add_parameters(model, parts.objective)
    world = distribute.spread(world, model, runtime)
    task = policy.PolicyTask(
        parts.objective, parts.negatives, context.seed, runtime.tokens_per_batch, runtime.logits_per_chunk,
        parts.auxiliary, reference_model(context, device) if needs.live_reference else None,
        policy.first_state(parts.objective, device))
    outcome = fit(model, examples, task, Job(
        trainer, runtime, context.seed, context.work / "checkpoints", context.report, context.optional("optimizer"),
        world))
    if keep:
        with memory.enough("while writing the optimizer", memory.WRITING):
            moments = world.whole(optim.state_tensors(model, outcome.optimizer))
            if world.first:
                optim.save_folder(context.out / "optimizer", moments, outcome.updates)
    policy.remove_parameters(model)
    assembly.deliver(model, lambda: folders.load_policy(source, torch.device("cpu")), source, context.out, trainer,
                     world)
    context.report.count(groups=len(examples), steps=outcome.steps, **_by_table(context.inputs["groups"]),
                         completion_tokens=sum(e.completion_tokens for e in examples),
                         parameters=sum(throughput.weights(p) for p in model.parameters()))


def _by_table(groups: Sequence[Path]) -> dict[str, int]:
    """How many groups came from each of several tables, in recipe order."""
    return {f"from_input_{i}": tables.count(table) for i, table in enumerate(groups)} if len(groups) > 1 else {}


def reference_model(context: Context, device: Any) -> Any:
    """The frozen reference, for objectives that need more of it than sums of log-probs; of 4 bits as the policy is."""
    trainer = context.settings.trainer
    model = folders.load_policy(context.one("reference_model"), device, context.runtime,
                               adapters.quantisation(trainer.adapter, trainer.precision))
    forward.prepare(model, context.runtime.share_prefix)
    return model.eval().requires_grad_(False)


def load_examples(
    context: Context, parts: Parts, score: str, weights: Sequence[float], world: World
) -> Sequence[data.Example]:
    """The groups of `context`, checked against the token contract and the objective."""
    def load() -> Sequence[data.Example]:
        beside = SideTables(score=score, **{field: context.inputs.get(name, ()) for field, name in (
            ("reference", "reference"), ("previous", "previous"), ("scores", "scored"), ("weights", "weights"))})
        return data.load(columns.sources(context), context.work / "examples", beside,
                         folders.stop_ids(context.one("model")), weights)

    return checks.fit_to_objective(
        distribute.first_then_all(world, load), parts.objective, parts.negatives, parts.auxiliary)
