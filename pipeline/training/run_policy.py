"""What sft and train_preference do: load, check, train, write the folder."""

from __future__ import annotations

from typing import Any

from pipeline.build import Part, load_part
from pipeline.records import UserError
from pipeline.stage import Context
from pipeline.training import data, export, forward, optim, policy
from pipeline.training.loop import Job, fit


def train(context: Context, objective: dict[str, Any], negatives: dict[str, Any] | None, keep: bool = False) -> None:
    """Train the policy of `context` and write `model/` (and `optimizer/` with `keep`)."""
    runtime, trainer = context.runtime, context.settings.trainer
    device, source = export.prepare_machine(runtime), context.one("model")
    task = policy.PolicyTask(
        load_part(objective, "objective"), None if negatives is None else load_part(negatives, "negatives"),
        context.seed, runtime.tokens_per_batch, runtime.logits_per_chunk)
    examples = load_examples(context, task.objective, task.negatives)
    model = export.load_policy(source, device, runtime)
    data.check_fits(examples, model.get_input_embeddings().weight.shape[0], export.context_length(model))
    forward.check_head(model)
    outcome = fit(model, examples, task, Job(
        trainer, runtime, context.seed, context.work / "checkpoints", context.report, context.optional("optimizer")))
    if keep:
        optim.save_folder(context.out / "optimizer", model, outcome.optimizer, outcome.updates)
    export.save_folder(model, source, context.out / "model", trainer.save_dtype)
    context.report.count(groups=len(examples), steps=outcome.steps,
                         completion_tokens=sum(e.completion_tokens for e in examples),
                         parameters=sum(p.numel() for p in model.parameters()))


def load_examples(context: Context, objective: Part, negatives: Part | None) -> list[data.Example]:
    """The groups of `context`, checked against the token contract and the objective."""
    groups = context.one("groups")
    references = context.inputs.get("reference", ()) if "reference" in objective.module.NEEDS else ()
    examples = data.load(groups, references)
    problems = data.missing_stop(groups, export.stop_ids(context.one("model")))
    if problems:
        raise UserError(*problems)
    return policy.fit_to_objective(examples, objective, negatives)


