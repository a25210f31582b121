"""Command-line overrides -> one plain, resolved configuration; every problem at once.

Hydra's Compose API does the composing (`recipe=pco model=tiny objective.beta=0.2`). What it would report one by one,
or let pass, is looked for first: unknown groups, options and keys, each with the nearest names.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flows import companions
from pipeline.config import problems_of, setting
from pipeline.errors import UserError, nearest
from pipeline.runs import NAME

CONF = Path(__file__).resolve().parent.parent / "conf"
_INNER = {"stage", "steps"}  # groups that recipes and the planner compose, not the user


@dataclass(frozen=True)
class Top:
    """The top-level settings that belong to no group."""

    run: str | None
    workspace: str
    precision: str = setting(choices=("bfloat16", "float32"))
    seed: int = setting(low=0)
    iterations: int = setting(low=1)

    def check(self) -> list[tuple[str, str]]:
        problems = []
        if self.run is not None and not NAME.match(self.run):
            problems.append(("run", f"{self.run!r} is no run name, expected up to 64 letters, digits and . _ -"))
        place = Path(self.workspace).expanduser().resolve()
        existing = next(p for p in [place, *place.parents] if p.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            problems.append(("workspace", f"{existing} cannot be written; give another workspace=FOLDER"))
        return problems


@dataclass(frozen=True)
class Hardware:
    """What conf/hardware says beside what the stages take from it."""

    training: dict[str, Any]
    grace_seconds: float = setting(low=0)
    timeout_minutes: float = setting(low=0)


@dataclass(frozen=True)
class Composed:
    """The configuration, what was chosen in each group, and remarks the user should read."""

    config: dict[str, Any]
    choices: dict[str, str]
    origins: dict[str, str] = field(default_factory=dict)  # stage setting -> the key a user would change
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # of the overrides; to be raised together with those of the steps

    def in_users_words(self, problem: str) -> str:
        """A problem's dotted key as the user would type it: trainer.sft.lr, not stage.sft.settings.trainer.lr."""
        for inner, outer in sorted(self.origins.items(), key=lambda pair: -len(pair[0])):
            if problem.startswith(inner) and problem[len(inner):][:1] in (".", ":", "["):
                return outer + problem[len(inner):]
        return problem


def compose(overrides: list[str], *, conf: Path = CONF) -> Composed:
    """The configuration and the problems of the overrides. Raises UserError only where nothing can be composed."""
    problems: list[str] = []
    choices, values = _sort_out(overrides, conf, problems)
    if "recipe" not in choices and not any(p.startswith("recipe:") for p in problems):
        known = ", ".join(_options(conf, "recipe"))
        problems.insert(0, f"recipe: missing, say which one: recipe=NAME with NAME one of {known}")
    notes = _automatic(choices)
    along = companions.brought(choices, {key for key, _ in values}, conf)
    choices, values, notes = {**choices, **along.options}, along.values + values, notes + along.notes
    stages = [f"+stage@stage.{name}={name}" for name in _options(conf, "stage")]
    stages += [] if along.steps is None else [f"steps@recipe=[{','.join(along.steps)}]"]
    try:
        with initialize_config_dir(str(conf), version_base="1.3"):
            cfg = hydra_compose("config", [f"{g}={o}" for g, o in choices.items()] + stages)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(*problems, _first_line(error.__cause__ or error)) from None
    OmegaConf.set_struct(cfg, False)
    for node in cfg.values():
        if isinstance(node, DictConfig):
            node.pop(companions.KEY, None)
    for key, value in values:
        _apply(cfg, key, value, problems)
    origins = _origins(cfg)
    if cfg.precision == "auto":  # the result's key holds what it stands for: another machine may choose otherwise
        cfg.precision = precision_of(str(OmegaConf.select(cfg, "hardware.training.device", default="cpu")))
        if cfg.precision == "float32":
            notes.append("this CPU does not compute in bfloat16: precision=float32")
    try:
        config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        raise UserError(*problems, _first_line(error)) from None
    assert isinstance(config, dict)
    plain: dict[str, Any] = {str(key): value for key, value in config.items()}
    problems += problems_of(Top, {k: plain[k] for k in ("run", "workspace", "precision", "seed", "iterations")})
    problems += problems_of(Hardware, plain["hardware"], "hardware")
    plain["workspace"] = str(Path(str(plain["workspace"])).expanduser().resolve())
    plain["choices"] = choices
    return Composed(plain, choices, origins, notes, problems)


def _sort_out(overrides: list[str], conf: Path, problems: list[str]) -> tuple[dict[str, str], list[tuple[str, Any]]]:
    """Overrides that choose an option of a group, and overrides that set a value."""
    groups = {p.name for p in conf.iterdir() if p.is_dir() and not p.name.startswith("_")} - _INNER
    choices: dict[str, str] = {}
    values: list[tuple[str, Any]] = []
    for text in overrides:
        try:
            (parsed,) = OverridesParser.create().parse_overrides([text])
        except HydraException as error:
            problems.append(f"{text}: not of the form key=value ({_first_line(error)})")
            continue
        key = parsed.key_or_group
        if parsed.is_add() or parsed.is_force_add() or parsed.is_delete() or parsed.is_sweep_override():
            problems.append(f"{text}: expected plain key=value (no +, ~ or list of values to sweep over)")
        elif key in groups:
            option, known = str(parsed.value()), _options(conf, key)
            if option not in known:
                problems.append(f"{key}: no {key} named {option!r}{nearest(option, known)}")
            else:
                choices[key] = option
        else:
            values.append((key, parsed.value()))
    return choices, values


def _options(conf: Path, group: str) -> list[str]:
    return sorted(p.stem for p in (conf / group).glob("*.yaml"))


def _automatic(choices: dict[str, str]) -> list[str]:
    """Choices that follow from this machine where the user set nothing; each is printed as a note."""
    notes = []
    if "hardware" not in choices and Path("/dev/nvidia0").exists():
        choices["hardware"] = "cuda"
        notes.append("a CUDA device is here: hardware=cuda")
    if "engine" not in choices and importlib.util.find_spec("vllm") is None:
        choices["engine"] = "transformers"
        notes.append("vllm is not installed here: engine=transformers samples instead, slower")
    return notes


def _apply(cfg: DictConfig, key: str, value: Any, problems: list[str]) -> None:
    node: Any = cfg
    done: list[str] = []
    for name in key.split("."):
        keys = [str(k) for k in node] if isinstance(node, DictConfig) else []
        inside_later = "later" in done  # iteration numbers and settings not set before are fine there
        if name not in keys and not (name.isdigit() and int(name) in node if isinstance(node, DictConfig) else False):
            if inside_later:
                break
            place = f"{'.'.join(done)} has no {name!r}" if done else f"there is no {name!r}"
            problems.append(f"{key}: unknown key, {place}{nearest(name, keys)}")
            return
        done.append(name)
        node = node.get(name) if not name.isdigit() or name in keys else node.get(int(name))
    if isinstance(node, DictConfig) and not isinstance(value, dict):
        problems.append(f"{key}: is a group of settings ({', '.join(map(str, node))}), set one of them")
        return
    OmegaConf.update(cfg, key, value, merge=isinstance(value, dict))


def _origins(cfg: DictConfig) -> dict[str, str]:
    """`stage.sft.settings.trainer: ${trainer.sft}` read backwards: which key a stage's setting comes from."""
    found: dict[str, str] = {}
    raw = OmegaConf.to_container(cfg, resolve=False)

    def walk(node: Any, where: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                walk(value, f"{where}.{key}" if where else str(key))
        elif isinstance(node, str) and node.startswith("${") and node.endswith("}") and "{" not in node[2:]:
            found[where] = node[2:-1]

    assert isinstance(raw, dict)
    walk(raw.get("stage", {}), "stage")
    return found


def precision_of(device: str, cpu: Path = Path("/proc/cpuinfo")) -> str:
    """bfloat16 where `device` computes in it, float32 elsewhere: a CPU that emulates it is twenty times slower.

    device: "cpu", "cuda" or "auto". CUDA devices that can run the engine all have it.
    """
    if device == "cuda" or (device == "auto" and Path("/dev/nvidia0").exists()):
        return "bfloat16"
    words = set(cpu.read_text().split()) if cpu.exists() else set()
    return "bfloat16" if words & {"avx512_bf16", "amx_bf16", "bf16", "asimdbf16"} else "float32"


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
