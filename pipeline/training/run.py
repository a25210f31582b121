"""What the training stages do: load, check, adapt, train, write the folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface

from pipeline import columns, tables
from pipeline.config import Part, load_part
from pipeline.errors import UserError
from pipeline.lm import adapters, folders, forward, logps, prefix
from pipeline.lm import examples as data
from pipeline.lm.side_tables import SideTables
from pipeline.negatives.contract import Draw
from pipeline.objectives.contract import Auxiliary, Objective, needs_of
from pipeline.stage import Context, derive_seed
from pipeline.training import average, checkpoint, checks, delivered, distribute, optim, policy, throughput
from pipeline.training.gradients import World
from pipeline.training.loop import WRITING, Job, fit
from pipeline.training.settings import TrainerSettings, TrainRuntime


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
    ema: float | None = None,
) -> None:
    """Train the policy of `context` and write `model/` (and `optimizer/` with `keep`, `ema/model/` with `ema`)."""
    runtime, trainer = context.runtime, context.settings.trainer
    source = context.one("model")
    world, device = distribute.join(runtime, folders.prepare_machine(runtime))
    adapters.require(trainer.adapter, device)
    if trainer.adapter.on and (context.optional("optimizer") or keep):
        raise UserError(f"trainer.adapter.kind: {trainer.adapter.kind} with an optimizer that runs through several "
                        "steps: each starts a new adapter, whose moments start at nothing; set it to none")
    needs = needs_of(parts.objective, parts.auxiliary)
    examples = load_examples(context, parts, score, weights, world)
    model = folders.load_policy(source, device, runtime, adapters.base(trainer.adapter, trainer.precision, device))
    data.check_fits(examples, model.get_input_embeddings().weight.shape[0], folders.context_length(model))
    prefix.prepare(model, runtime.share_prefix)
    adapt(model, trainer, runtime, context.seed)
    policy.add_parameters(model, parts.objective)
    world = distribute.spread(world, model, runtime, trainer.precision)
    task = policy.PolicyTask(
        parts.objective, parts.negatives, context.seed, runtime.tokens_per_batch, runtime.logits_per_chunk,
        parts.auxiliary, reference_model(context, device) if needs.live_reference else None,
        policy.first_state(parts.objective, device))
    outcome = fit(model, examples, task, Job(trainer, runtime, context.seed, context.work / "checkpoints",
                                             context.report, context.optional("optimizer"), world, ema))
    if keep:
        with forward.enough_memory("while writing the optimizer", WRITING):
            moments = world.whole(optim.state_tensors(model, outcome.optimizer))
            if world.first:
                optim.save_folder(context.out / "optimizer", moments, outcome.updates)
    policy.remove_parameters(model)
    origin = Origin(source, lambda folder: folders.load_policy(folder, torch.device("cpu")))
    probe = delivered.Probe.of(examples)
    deliver(model, origin, context.out, trainer, world, probe)
    if ema is not None:
        average.put(outcome.averages, model)
        deliver(model, origin, context.out / "ema", trainer, world, probe)
    tables_of = () if context.inputs.get("replay") else context.inputs["groups"]
    context.report.count(groups=len(examples), steps=outcome.steps, **_by_table(tables_of),
                         completion_tokens=sum(e.completion_tokens for e in examples),
                         parameters=sum(throughput.weights(p) for p in model.parameters()))


def _by_table(groups: Sequence[Path]) -> dict[str, int]:
    """How many groups came from each of several tables, in recipe order."""
    return {f"from_input_{i}": tables.count(table) for i, table in enumerate(groups)} if len(groups) > 1 else {}


def adapt(model: Any, trainer: TrainerSettings, runtime: TrainRuntime, seed: int, whole: tuple[str, ...] = ()) -> None:
    """Put in adapters and compile, in place. `whole` are modules that learn altogether beside an adapter."""
    if trainer.adapter.on:
        adapters.add(model, trainer.adapter, derive_seed(seed, "adapter"), whole)
    if runtime.compile:
        # attention over a tree of prompts and completions walks it in Python: compiled, every batch would be a new one
        AttentionInterface.register(forward.ATTENTION, torch.compiler.disable(forward.tree_attention))
        for layer in distribute.layers_of(model):  # one by one: the same code, compiled once
            layer.compile(dynamic=True)


@dataclass(frozen=True)
class Origin:
    """What training started from: its folder, and how such a folder is loaded on the CPU."""

    folder: Path
    load: Callable[[Path], Any]


def deliver(
    model: Any, origin: Origin, out: Path, trainer: TrainerSettings, world: World, probe: delivered.Probe
) -> None:
    """Write `out/model/`, a plain Hugging Face folder, and `out/adapter/` where one was trained; load the folder back.

    Every process calls it, the first one writes. Raises UserError where the folder is not what was trained.
    """
    with forward.enough_memory("while writing the model", WRITING):
        four = trainer.adapter.kind == "qlora"  # delivered over full weights, which is not what it learned over
        model.zero_grad(set_to_none=True)  # room for the folder that is loaded back
        model.eval()  # an adapter's dropout is off
        low = world.low or any(weights.dtype == torch.bfloat16 for weights in model.parameters())
        values = torch.empty(0) if four else world.run(delivered.by_training_core, model, probe)
        world.settle()  # a pass without gradient leaves some weights gathered, in memory that the next call would free
        trained = world.whole(checkpoint.weights(model))
        if not world.first:
            return
        if trainer.adapter.on:
            adapters.save(model, trained, out / "adapter")
            model = adapters.put_on(origin.load(origin.folder), out / "adapter")
            if four:
                values = delivered.by_own_forward(model.eval(), probe)
            model = model.merge_and_unload()
        elif world.shell is not None:
            model = origin.load(origin.folder)
            checkpoint.put(model, trained)
        folders.save_folder(model, origin.folder, out / "model", trainer.save_dtype)
        delivered.check(values, out / "model", origin.load, probe, trainer.save_dtype, low and not four)


def reference_model(context: Context, device: Any) -> Any:
    """The frozen reference, for objectives that need more of it than sums of log-probs; of 4 bits as the policy is."""
    trainer = context.settings.trainer
    return logps.open_frozen(context.one("reference_model"), device, context.runtime, trainer.precision,
                             adapters.quantisation(trainer.adapter, trainer.precision))


def load_examples(
    context: Context, parts: Parts, score: str, weights: Sequence[float], world: World
) -> Sequence[data.Example]:
    """The groups of `context`, checked against the token contract and the objective."""
    def load() -> Sequence[data.Example]:
        beside = SideTables(score=score, **{field: context.inputs.get(name, ()) for field, name in (
            ("reference", "reference"), ("previous", "previous"), ("scores", "scored"), ("weights", "weights"),
            ("replay", "replay"))})
        return data.load(columns.sources(context), context.work / "examples", beside,
                         folders.stop_ids(context.one("model")), weights,
                         needs_of(parts.objective, parts.auxiliary).rationale)

    return checks.fit_to_objective(
        distribute.first_then_all(world, load), parts.objective, parts.negatives, parts.auxiliary)
