"""A reward model: a one-score head on the SFT model (or any causal LM folder), Bradley-Terry on pairs.

Trains on the ids the tables carry. Output: `model/`, a sequence-classification folder with the policy's tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.build import setting
from pipeline.records import UserError
from pipeline.stage import Context, derive_seed
from pipeline.training.settings import TrainerSettings, TrainRuntime

VERSION = 1
INPUTS = {"model": "one", "groups": "one"}
SEEDED = True
Runtime = TrainRuntime


@dataclass(frozen=True)
class Settings:
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    held_out: float = setting(0.05, low=0.0, below=1.0)  # share of pairs that only measure accuracy


def run(context: Context) -> None:
    from pipeline.training import data, export, reward
    from pipeline.training.loop import Job, autocast, fit

    settings, runtime, source = context.settings, context.runtime, context.one("model")
    device, pad = export.prepare_machine(runtime), export.pad_id(export.load_tokenizer(source))
    training, held_out = reward.split(data.load(context.one("groups")), settings.held_out)
    _check_pairs([*training, *held_out], bool(training))
    model = export.load_reward(source, device, derive_seed(context.seed, "head"), pad, runtime)
    data.check_fits([*training, *held_out], model.get_input_embeddings().weight.shape[0], export.context_length(model))
    outcome = fit(model, training, reward.RewardTask(pad), Job(
        settings.trainer, runtime, context.seed, context.work / "checkpoints", context.report))
    if held_out:
        with autocast(device, settings.trainer.precision):
            measured = reward.accuracy(model, held_out, pad, runtime.tokens_per_batch)
        context.report.metric(outcome.steps, **{f"held_out_{k}": v for k, v in measured.items()})
        context.report.count(**{f"held_out_{k}": v for k, v in measured.items()})
    export.save_folder(model, source, context.out / "model", settings.trainer.save_dtype)
    context.report.count(groups=len(training), held_out_groups=len(held_out), steps=outcome.steps)


def _check_pairs(examples: list, enough: bool) -> None:  # type: ignore[type-arg]
    single = [e.id for e in examples if len(e.completions) < 2]
    if single:
        raise UserError(f"train_reward: {len(single)} groups have one completion (first {single[0]!r}), expected pairs")
    if not enough:
        raise UserError("train_reward: held_out leaves no pair to train on, lower it")
