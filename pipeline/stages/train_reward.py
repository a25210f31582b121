"""A reward model: a one-score head on the SFT model (or any causal LM folder), Bradley-Terry on pairs.

Trains on the ids the tables carry. Output: `model/`, a sequence-classification folder with the policy's tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import setting
from pipeline.errors import UserError
from pipeline.stage import Context, Cost, Stage, derive_seed, told
from pipeline.training.settings import TrainerSettings, TrainRuntime, processes

if TYPE_CHECKING:
    from pipeline.lm.examples import Example


_PAIRS = ("this run trains a reward model on pairs; give pairs (chosen, rejected), or another reward: "
          "reward.path=FOLDER of a finished model, or reward=rule")


@dataclass(frozen=True)
class Settings:
    trainer: TrainerSettings = field(default_factory=TrainerSettings)  # one training run
    held_out: float = setting(0.05, low=0.0, below=1.0)  # share of pairs that only measure accuracy
    label_smoothing: float = setting(0.0, low=0.0, below=0.5, added=True)  # share of labels taken to be wrong
    centring: float = setting(0.0, low=0.0, added=True)  # c of c (score(chosen) + score(rejected))^2 beside the loss
    margin: float = setting(0.0, low=0.0, added=True)  # m: scores must differ by m times what the data's own do
    margin_score: str = setting("given", added=True)  # name of the data's own score, of which the margins are made
    base: str | None = None  # a folder to train it on instead of the input `model`; with the same tokenizer


def run(context: Context) -> None:
    import torch

    from pipeline import columns
    from pipeline.lm import adapters, examples, folders, forward, scores
    from pipeline.lm.side_tables import SideTables
    from pipeline.training import delivered, distribute, reward, run
    from pipeline.training.loop import Job, fit

    settings, runtime, source = context.settings, context.runtime, _base(context)
    trainer, head = settings.trainer, derive_seed(context.seed, "head")
    world, device = distribute.join(runtime, folders.prepare_machine(runtime))
    adapters.require(trainer.adapter, device)
    pad = folders.pad_id(folders.load_tokenizer(source))
    training, held_out = reward.split(distribute.first_then_all(
        world, lambda: examples.load(
            columns.sources(context), context.work / "examples", SideTables(score=settings.margin_score),
            folders.stop_ids(context.one("model")))),
        settings.held_out)
    _check_pairs(training, held_out, settings)
    model = folders.load_reward(source, device, head, pad, runtime,
                                adapters.base(trainer.adapter, trainer.precision, device))
    for part in (training, held_out):
        examples.check_fits(part, model.get_input_embeddings().weight.shape[0], folders.context_length(model))
    scores.prepare(model, runtime.share_prefix)
    run.adapt(model, trainer, runtime, context.seed, whole=("score",))
    world = distribute.spread(world, model, runtime, trainer.precision)
    task = reward.RewardTask(pad, settings.label_smoothing, settings.centring, settings.margin)
    outcome = fit(model, training, task, Job(
        trainer, runtime, context.seed, context.work / "checkpoints", context.report, world=world))
    if held_out:
        with forward.enough_memory("on the held-out pairs", forward.smaller_pass(runtime)), \
                forward.autocast(device, trainer.precision):
            measured = world.run(reward.accuracy, model, held_out, pad, runtime.tokens_per_batch)
        context.report.metric(outcome.steps, **{f"held_out_{k}": v for k, v in measured.items()})
        context.report.count(**{f"held_out_{k}": v for k, v in measured.items()})
    origin = run.Origin(source, lambda folder: folders.load_reward(folder, torch.device("cpu"), head, pad))
    run.deliver(model, origin, context.out, trainer, world, delivered.Probe.of(training, pad))
    context.report.count(groups=len(training), held_out_groups=len(held_out), steps=outcome.steps)
    if settings.margin > 0.0:
        context.report.count(groups_with_margin=sum(e.scores is not None for e in training))


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


def _check_pairs(training: Sequence[Example], held_out: Sequence[Example], settings: Settings) -> None:
    if single := [e.id for part in (training, held_out) for e in part if len(e.completions) < 2]:
        raise UserError(f"train_reward: {len(single)} groups have one completion (first {single[0]!r}), expected pairs")
    if not training:
        raise UserError("train_reward: held_out leaves no pair to train on, lower it")
    if settings.margin > 0.0 and all(e.scores is None for e in training):
        raise UserError(f"reward.margin: none of the {len(training)} groups has a score {settings.margin_score!r}, "
                        "whose differences are the margins; set it to 0, or stage.train_reward.settings.margin_score")


STAGE = Stage(Settings, run, version=2, inputs={"model": "one", "groups": "many"}, seeded=True, seed="reward",
              runtime=TrainRuntime, distributed=True, devices=processes, files=files, check=check,
              wants=lambda settings: {"pairs": _PAIRS},
              cost=lambda settings: Cost(weights=1, checkpoints=True),
              says=told("held-out accuracy {held_out_accuracy:.1%} ({held_out_accuracy_low:.1%} to "
                        "{held_out_accuracy_high:.1%})", "length alone {held_out_length_accuracy:.1%}, chance 50 %",
                        "{steps:,.0f} steps", "{groups:,.0f} pairs"))
