"""A reward model: a one-score head on the SFT model (or any causal LM folder), Bradley-Terry on pairs.

Trains on the ids the tables carry. Output: `model/`, a sequence-classification folder with the policy's tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

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
    base: str | None = None  # a folder to train it on instead of the input `model`; with the same tokenizer


def run(context: Context) -> None:
    from pipeline.training import data, export, reward
    from pipeline.training.gradients import autocast
    from pipeline.training.loop import Job, fit

    settings, runtime, source = context.settings, context.runtime, _base(context)
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


def files(settings: Settings, runtime: TrainRuntime) -> list[Path]:
    """The base model's files, whose content is part of the key."""
    if settings.base is None:
        return []
    return sorted(p for p in Path(settings.base).expanduser().iterdir() if p.is_file())


def check(settings: Settings, runtime: TrainRuntime) -> list[str]:
    if settings.base is None:
        return []
    folder = Path(settings.base).expanduser()
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    return [f"reward.base: {folder} has no {name}, expected a Hugging Face model folder" for name in missing]


def _base(context: Context) -> Path:
    """The folder to start from. Raises UserError where its tokenizer is not the policy's: the ids are the policy's."""
    policy = context.one("model")
    if context.settings.base is None:
        return policy
    base = Path(context.settings.base).expanduser()
    if (base / "tokenizer.json").read_bytes() != (policy / "tokenizer.json").read_bytes():
        raise UserError(f"reward.base: {base} has another tokenizer than the policy, whose token ids the pairs carry; "
                        "train a reward model of another family elsewhere and give it as reward.path")
    return base


def _check_pairs(examples: list, enough: bool) -> None:  # type: ignore[type-arg]
    single = [e.id for e in examples if len(e.completions) < 2]
    if single:
        raise UserError(f"train_reward: {len(single)} groups have one completion (first {single[0]!r}), expected pairs")
    if not enough:
        raise UserError("train_reward: held_out leaves no pair to train on, lower it")
