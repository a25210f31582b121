"""The trainings of a plan: values by size and objective, what they see, whether they fit, rates that ruin a model."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from flows import machine, pools, presets, screen, weekly
from pipeline import hub, outside
from pipeline.config import flat
from pipeline.plan import Planned, Step
from pipeline.source import Source, parameters
from pipeline.wiring import Ref

BLOCKS = {"sft": "sft", "train_reward": "reward", "train_preference": "preference"}  # stage -> its block of `trainer`
EXTRA = ("of_size", "of_objective")  # keys of a trainer's file that are no settings
_MOST_LR, _FEW_WEIGHTS = 1e-4, 100e6  # a higher rate ruins larger pretrained models, all weights learning
# Bytes a weight: with gradient and moments; alone; in bfloat16; of 4 bits, norms and head not.
_FULL, _FLOAT, _HALF, _NF4 = 16.0, 4.0, 2.0, 0.6


def values_for(raw: dict[str, Any], known: Mapping[str, Any]) -> tuple[list[tuple[str, Any]], list[str]]:
    """What the trainer's file has for a model of this size and for this objective: (key, value), and a remark on each.

    raw: the groups as composed. known: the keys that are set otherwise, which win.
    """
    # The path of a preset is an expression.
    groups, trainer = OmegaConf.create(raw), raw["trainer"]
    model = {key: known.get(f"model.{key}", OmegaConf.select(groups, f"model.{key}")) for key in ("path", "base")}
    weights = pretrained_weights(model)
    module = str({**(raw["objective"] or {}), **_under("objective", known)}.get("module"))
    name = module.rpartition(".")[2]
    found = {f"a model of {screen.number(weights)} weights": {"trainer": node} for bound, node in
             sorted((trainer.get("of_size") or {}).items()) if weights is not None and weights >= float(bound)}
    if own := (trainer.get("of_objective") or {}).get(name):
        found[f"objective={name}"] = {"trainer": {"preference": {k: v for k, v in own.items() if k != "objective"}},
                                      "objective": own.get("objective") or {}}
    values, notes = dict[str, Any](), list[str]()
    if weights is None and hub.named(str(model["path"] or "")) and trainer.get("of_size"):
        notes.append(f"how many weights {model['path']} has is not told by its files: the rates are those of a model "
                     f"below {screen.number(float(min(trainer['of_size'], key=float)))}")
    for what, node in found.items():
        brought = {key: value for key, value in flat(node).items()
                   if key not in known and presets.in_every_iteration(key) not in known}
        values |= brought
        notes += [f"{what} brings " + ", ".join(f"{k}={v}" for k, v in brought.items())] if brought else []
    return list(values.items()), notes


def strip(raw: dict[str, Any]) -> None:
    """Take from the composed groups what is no setting."""
    raw["trainer"] = {key: value for key, value in raw["trainer"].items() if key not in EXTRA}


def share_prompts(config: dict[str, Any]) -> None:
    """Where no number of prompts is set, the iterations that sample from the data share all of them."""
    if config["sampling"].get("prompts_per_iteration") is None:
        config["stage"]["select_prompts"]["settings"]["last"] = weekly.own_iterations(config)


def pretrained_weights(model: Mapping[str, Any]) -> int | None:
    """Weights of the model given, by its files' headers; None where none is given or they do not tell."""
    if not model.get("path"):
        return None
    base = model.get("base")
    return parameters(Source(str(model["path"]), base and str(base)))


def _under(group: str, known: Mapping[str, Any]) -> dict[str, Any]:
    return {key.partition(".")[2]: value for key, value in known.items() if key.partition(".")[0] == group}


def trainer_of(step: Step) -> Any:
    """The TrainerSettings of a step that trains, else None."""
    return step.settings.trainer if step.stage in BLOCKS else None


# ---------------------------------------------------------------------------------------------------------------------


def problems(config: dict[str, Any], steps: Iterable[Step], given: Mapping[str, frozenset[str]]) -> list[str]:
    """Trainings that would ruin the model given or do not fit into the device's memory, too few prompts to sample from.

    given: the keys the user set, by step; "" for those of every step.
    """
    steps = list(steps)
    kept = [(step, trainer) for step in steps if (trainer := trainer_of(step)) is not None]
    few = pools.problems(Path(config["workspace"]), steps) + _without_4_bits(kept)
    weights = pretrained_weights(config["model"])
    if weights is None:
        return few
    return [*few, *_ruinous(weights, kept, given), *_too_large(config, weights, kept)]


def _without_4_bits(trainings: list[tuple[Step, Any]]) -> list[str]:
    asked = dict.fromkeys(f"trainer.{BLOCKS[step.stage]}.adapter.kind" for step, trainer in trainings
                          if trainer.adapter.kind == "qlora")
    if not asked or importlib.util.find_spec("bitsandbytes") is not None:
        return []
    return [f"{', '.join(asked)}: qlora needs the package bitsandbytes, which is not installed; pip install "
            "'alignloop[qlora]' or take trainer=lora"]


def _ruinous(weights: int, trainings: list[tuple[Step, Any]], given: Mapping[str, frozenset[str]]) -> list[str]:
    found = {}
    for step, trainer in trainings:
        key = f"trainer.{BLOCKS[step.stage]}.lr"
        asked = given.get(step.name, given[""])
        own = key in asked or f"stage.{step.stage}.settings.trainer.lr" in asked
        if weights > _FEW_WEIGHTS and trainer.lr > _MOST_LR and not trainer.adapter.on and not own:
            found[key] = (f"{key}: {trainer.lr:g} for all {screen.number(weights)} weights of a pretrained model, "
                          f"which it would ruin, expected at most {_MOST_LR:g}; take trainer=full or trainer=lora, or "
                          f"say it yourself: {key}={trainer.lr:g}")
    return list(found.values())


def bytes_needed(weights: int, kind: str, on_cpu: bool, copies: int, devices: int, each: float = _FLOAT) -> float:
    """Memory of one device for a training, activations not counted, bytes.

    kind: "none" (all weights), "lora", "qlora". copies: frozen models beside it. devices: the weights are spread over.
    each: bytes of a weight that nothing trains.
    """
    frozen = {"none": _FULL, "lora": each, "qlora": _NF4}[kind]
    beside = copies * (_NF4 if kind == "qlora" else each)
    training = weights * (frozen + beside) / devices
    # Float32 weights are loaded whole before they are spread; an adapter is merged into them at the end, on the CPU.
    merging = weights * (frozen + _FLOAT) if kind != "none" and on_cpu else 0.0
    return max(training, merging, weights * {"none": _FLOAT, "lora": each, "qlora": _NF4}[kind])


def _too_large(config: dict[str, Any], weights: int, trainings: list[tuple[Step, Any]]) -> list[str]:
    hardware = config["hardware"]
    device = str(hardware["training"]["device"])
    room = hardware["memory_gb"] * 1e9 if hardware["memory_gb"] else machine.memory(device)
    spread = hardware["training"]["strategy"] == "fsdp2"
    devices = hardware["training"]["processes"] * hardware["training"]["nodes"] if spread else 1
    on_cpu = not machine.on_cuda(device)
    needs: dict[str, float] = {}
    large = {}
    for step, trainer in trainings:
        copies = 1 if "reference_model" in step.inputs else 0
        each = _FLOAT if on_cpu or trainer.precision == "float32" else _HALF
        for kind in ("none", "lora", "qlora"):
            needs[kind] = max(needs.get(kind, 0.0), bytes_needed(weights, kind, on_cpu, copies, devices, each))
        own = bytes_needed(weights, trainer.adapter.kind, on_cpu, copies, devices, each)
        if own > room > 0:
            large[f"trainer.{BLOCKS[step.stage]}"] = (own, trainer.adapter.kind)
    if not large:
        return []
    most, kind = max(large.values())
    fitting = [name for name in ("lora", "qlora") if name != kind and needs[name] <= room and needs[name] < most]
    ways = [f"trainer={name} ({screen.size(needs[name])})" for name in fitting[:1]]
    ways += [] if spread and devices > 1 else ["more devices (hardware.training.strategy=fsdp2)"]
    what = "all" if kind == "none" else f"{kind} adapters of"
    return [f"{', '.join(large)}: training {what} {screen.number(weights)} weights takes {screen.size(most)} before "
            f"activations, the device has {screen.size(room)}; set {', '.join(ways)} or take a smaller model"]


# ---------------------------------------------------------------------------------------------------------------------

COLUMNS = ["training", "weights", "lr", "schedule", "batch", "epochs", "groups", "steps", "tokens"]


@dataclass(frozen=True)
class Seen:
    """What a table holds, as far as it is known before it is made."""

    groups: int | None = None
    tokens: int | None = None
    exact: bool = True

    def __add__(self, other: Seen) -> Seen:
        groups = None if self.groups is None or other.groups is None else self.groups + other.groups
        tokens = None if self.tokens is None or other.tokens is None else self.tokens + other.tokens
        return Seen(groups, tokens, self.exact and other.exact)


def rows(workspace: Path, planned: list[Planned]) -> list[list[str]]:
    """One line for each training of the plan, as COLUMNS has it: ~ marks what the data decide, ? what is not known."""
    found = []
    for item in planned:
        trainer = trainer_of(item.step)
        if trainer is None:
            continue
        here = _trained(workspace, planned, item.step)
        mark, steps, passes, tokens = "" if here.exact else "~", "?", "?", "?"
        if here.groups:
            number = trainer.steps(here.groups)
            over = number * trainer.batch_size / here.groups
            steps, passes = f"{mark}{number}", f"{over:.3g}" if over < 1000 else f"{over:,.0f}"
            tokens = "?" if here.tokens is None else f"{mark}{screen.number(here.tokens * over)}"
        learns = f"{trainer.adapter.kind} r{trainer.adapter.r}" if trainer.adapter.on else "all"
        groups = "?" if here.groups is None else f"{mark}{here.groups}"
        found.append([item.step.name, learns, f"{trainer.lr:g}", _schedule(trainer), str(trainer.batch_size), passes,
                      groups, steps, tokens])
    return found


def pairs(workspace: Path, planned: list[Planned], item: Planned) -> int:
    """Groups a training sees, passes over the data counted; 0 where they are not known."""
    groups, trainer = _trained(workspace, planned, item.step).groups, trainer_of(item.step)
    return trainer.steps(groups) * trainer.batch_size if groups else (trainer.max_steps or 0) * trainer.batch_size


def notes(workspace: Path, planned: list[Planned]) -> list[str]:
    """A line on each training whose batch is more groups than it has: every step takes some of them several times."""
    found = []
    for item in planned:
        if (trainer := trainer_of(item.step)) is None:
            continue
        groups = _trained(workspace, planned, item.step).groups
        if groups and trainer.batch_size > groups:
            over = trainer.steps(groups) * trainer.batch_size / groups
            found.append(f"{item.step.name}: a batch of {trainer.batch_size} is more than its {groups} groups, every "
                         f"step sees them again ({over:.3g} passes in all); lower "
                         f"trainer.{BLOCKS[item.step.stage]}.batch_size")
    return found


def _trained(workspace: Path, planned: list[Planned], step: Step) -> Seen:
    """What a training sees: of its tables, where a replay says which of their groups, at most those it keeps."""
    whole = seen(workspace, planned, step.inputs["groups"])
    if not step.inputs.get("replay"):
        return whole
    kept = seen(workspace, planned, step.inputs["replay"])
    return Seen(kept.groups, None, exact=True) if kept.exact else dataclasses.replace(whole, exact=False)


def seen(workspace: Path, planned: list[Planned], refs: tuple[Ref, ...]) -> Seen:
    """What tables hold together."""
    by_name = {item.step.name: item for item in planned}
    parts = [_seen(workspace, by_name, ref.step, ref.part) for ref in refs]
    return sum(parts[1:], parts[0])


def _schedule(trainer: Any) -> str:
    warm = trainer.warmup_steps
    return f"{trainer.schedule}, {f'{warm:.0%}' if 0 < warm < 1 else warm} up" if warm else trainer.schedule


def _seen(workspace: Path, by_name: dict[str, Planned], name: str, part: str) -> Seen:
    """Groups and tokens of the part of a step: counted where it has run, else from what it will read."""
    item = by_name[name]
    table = part.partition("/")[0]
    if item.artifact is not None:
        counts = item.artifact.manifest["counts"]
        groups = counts.get(table, counts.get("kept", counts.get("prompts")))
        return Seen(None if groups is None else int(groups), counts.get(f"{table}_tokens"))
    if item.step.stage in outside.IMPORTS:
        return Seen(outside.foreseen(workspace, item.step).get(table))
    if item.step.stage == "tokenize":
        return dataclasses.replace(_seen(workspace, by_name, item.step.inputs["data"][0].step, part), exact=False)
    if item.step.stage == "select_prompts":
        settings, (pool,) = item.step.settings, item.step.inputs["prompts"]
        if settings.count is not None and not settings.fewer:
            return Seen(settings.count)
        whole = _seen(workspace, by_name, pool.step, pool.part).groups
        if whole is None:
            return Seen()
        share = whole // (settings.last - settings.first + 1)
        return Seen(share if settings.count is None else min(share, settings.count), exact=False)
    source = item.step.inputs.get("groups") or item.step.inputs.get("prompts")
    if source is None:
        return Seen()
    before = _seen(workspace, by_name, source[0].step, source[0].part)
    return Seen(before.groups, exact=False)  # at most one group of each prompt for most selections
