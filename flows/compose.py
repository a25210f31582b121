"""Command-line overrides -> one plain, resolved configuration; every problem at once.

Hydra's Compose API does the composing (`recipe=pco model=tiny objective.beta=0.2`). What it would report one by one,
or let pass, is looked for first: unknown groups, options and keys, each with the nearest names.

An option may bring others along: `objective=hypo` alone also means a selection that builds the groups it learns from.
Its file may hold

    companions:
      selection: pair_and_samples                            # another group's option
      train.score: win_rate                                  # a value
      steps: {from_sft: from_sft_sampled}                    # in a recipe with these steps, those instead

They count for options named on the command line, and for what those bring in turn. The command line's own words win
over them; they win over the recipe and the defaults. Nothing of it reaches the settings of the option itself.
"""

import dataclasses
import functools
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flows import cuda, launching, policies, presets, settings, trainings
from flows.machine import automatic, precision_of
from flows.renamed import NEVER, problems_of_steps, renamed
from pipeline.config import flat, problems_of, setting
from pipeline.errors import UserError, nearest
from pipeline.runs import MOVED, NAME

CONF = settings.ROOT / "conf"
COMPANIONS, STEPS, PUBLISHED = "companions", "steps", "published"
_NO_SETTINGS = (COMPANIONS, *presets.WORDS.values())
_AS_TYPED = {"run", "workspace", "tracking.tensorboard.folder", *settings.PATHS}  # no grammar reads them


@dataclass(frozen=True)
class Top:
    """The top-level settings that belong to no group."""

    run: str | None
    workspace: str
    start: str | dict[int, str]
    reference: str | dict[int, str]
    precision: str = setting(choices=("bfloat16", "float32"))
    seed: int = setting(low=0)
    iterations: int = setting(low=1)
    sft: str = setting(choices=("train", "none"))

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
class Composed:
    """The configuration, what was chosen in each group, and remarks the user should read."""

    config: dict[str, Any]
    choices: dict[str, str]
    origins: dict[str, str] = field(default_factory=dict)  # stage setting -> the key a user would change
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # of the overrides; to be raised together with those of the steps
    given: frozenset[str] = frozenset()  # the keys the user set

    def in_users_words(self, problem: str) -> str:
        """A problem's dotted key as the user would type it: trainer.sft.lr, not stage.sft.settings.trainer.lr."""
        for inner, outer in sorted(self.origins.items(), key=lambda pair: -len(pair[0])):
            if problem.startswith(inner) and problem[len(inner):][:1] in (".", ":", "["):
                return outer + problem[len(inner):]
        return problem


def compose(overrides: list[str], *, conf: Path = CONF) -> Composed:
    """The configuration and the problems of the overrides. Raises UserError only where nothing can be composed."""
    problems: list[str] = []
    choices, typed = _sort_out(overrides, conf, problems)
    if PUBLISHED in choices:
        choices = {"recipe": settings.option_node(conf, PUBLISHED, choices[PUBLISHED])[COMPANIONS]["recipe"], **choices}
    if "recipe" not in choices and not any(p.startswith(("recipe:", f"{PUBLISHED}:")) for p in problems):
        known = ", ".join(settings.options(conf, "recipe"))
        problems.insert(0, f"recipe: missing, say which one: recipe=NAME with NAME one of {known}")
    notes = automatic(choices)
    along = brought(choices, {key for key, _ in typed}, conf)
    choices = {**choices, **along.options}
    values, said = presets.expanded(along.values + typed, conf, _recipe(conf, choices.get("recipe")) | choices)
    notes += along.notes + said
    if along.problems:
        raise UserError(*problems, *along.problems)
    try:
        raw = composed_groups(choices, along.steps, conf)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(*problems, _first_line(error.__cause__ or error)) from None
    origins = settings.wires(raw["stage"])
    taken = _keys(values)
    for bring in (policies.values_for, trainings.values_for, cuda.values_for, launching.values_for):
        more, said = bring(raw, taken)
        values, notes = more + values, notes + said
    trainings.strip(raw)
    cfg = OmegaConf.create(raw)
    for key, value in sorted(values, key=lambda pair: is_later(pair[0])):  # those of single iterations last: they win
        _apply(cfg, key, value, problems)
    if cfg.precision == "auto":  # the result's key holds what it stands for: another machine may choose otherwise
        cfg.precision = precision_of(str(OmegaConf.select(cfg, "hardware.training.device", default="cpu")))
        if cfg.precision == "float32":
            notes.append("this CPU does not compute in bfloat16: precision=float32")
    try:
        plain = settings.plain(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(*problems, _first_line(error)) from None
    wrong = problems_of(Top, {field.name: plain[field.name] for field in dataclasses.fields(Top)})
    told = {problem.partition(":")[0].partition(".")[0] for problem in wrong}
    problems += wrong + [problem for problem in policies.apply(plain) if problem.partition(":")[0] not in told]
    trainings.share_prompts(plain)
    problems += settings.root_problems(plain, told)
    plain["workspace"] = str(Path(str(plain["workspace"])).expanduser().resolve())
    plain["choices"] = choices
    return Composed(plain, choices, origins, notes, problems, frozenset(_keys(typed)))


def _keys(values: list[tuple[str, Any]]) -> dict[str, Any]:
    """Dotted key -> value; of a key given twice the later."""
    return {name: one for key, value in values for name, one in flat({key: value}).items()}


def composed_groups(choices: dict[str, str], steps: list[str] | None = None, conf: Path = CONF) -> dict[str, Any]:
    """The groups with these options and the defaults of every setting, interpolations not resolved.

    steps: the recipe's files of conf/steps, if others. Raises what Hydra raises.
    """
    _offer_parts(conf)
    words = [f"{group}={option}" for group, option in choices.items()]
    words += [] if steps is None else [f"steps@recipe=[{','.join(steps)}]"]
    with initialize_config_dir(str(conf), version_base="1.3"):
        raw = settings.plain(hydra_compose("config", words), resolve=False)
    plain = {key: {k: v for k, v in node.items() if k not in _NO_SETTINGS} if isinstance(node, dict) else node
             for key, node in raw.items()}
    return settings.filled(plain, settings.wires(plain["stage"]))


@functools.cache
def _offer_parts(conf: Path) -> None:
    """Tell Hydra of the modules that are options without a file in conf."""
    for group in settings.PACKAGES:
        for path in settings.part_files(group):
            if not (conf / group / f"{path.stem}.yaml").is_file():
                ConfigStore.instance().store(name=path.stem, group=group, node=settings.part_node(group, path))


@dataclass(frozen=True)
class Brought:
    """Options and values that come along, the recipe's changed steps (None: as they are), and a remark for each."""

    options: dict[str, str] = field(default_factory=dict)
    values: list[tuple[str, Any]] = field(default_factory=list)
    steps: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def brought(choices: dict[str, str], given: set[str], conf: Path = CONF) -> Brought:
    """Companions of the options chosen on the command line (group -> option). given: the dotted keys it sets."""
    found = Brought()
    recipe = _recipe(conf, choices.get("recipe"))
    before = steps = recipe.get(STEPS, [])
    found.problems.extend(problems_of_steps(f"conf/recipe/{choices.get('recipe')}.yaml", steps))
    waiting = list(choices.items())
    while waiting:
        group, option = waiting.pop(0)
        said = []
        for key, value in (settings.option_node(conf, group, option).get(COMPANIONS) or {}).items():
            if key == STEPS:
                found.problems.extend(problems_of_steps(f"conf/{group}/{option}.yaml", [*value, *value.values()]))
                changed = [value.get(name, name) for name in steps]
                said += [f"the steps {new} for {old}" for old, new in zip(steps, changed, strict=True) if new != old]
                steps = changed
            elif not (conf / key).is_dir():
                out = key in given or (group == PUBLISHED and "trainer" in choices and key.endswith(".lr"))
                said += [] if out else [f"{key}={value}"]  # rates are for the trainer they were published with
                found.values.extend([] if out else [(key, value)])
            elif key not in choices and key not in found.options:
                said += [] if recipe.get(key) == value else [f"{key}={value}"]
                found.options[key] = value
                waiting.append((key, value))
        if group == PUBLISHED:
            said = [f"{len(said)} values, with the source of each in conf/{PUBLISHED}/{option}.yaml"]
        found.notes.extend([f"{group}={option} brings {', '.join(said)}"] if said else [])
    return found if steps == before else replace(found, steps=steps)


def _recipe(conf: Path, name: str | None) -> dict[str, Any]:
    """What a recipe's file chooses: group -> option, and its files of conf/steps in order."""
    plain = {"/steps@recipe": STEPS}
    if name is None:
        return {}
    return {plain.get(key, key.removeprefix("override /")): value
            for node in settings.option_node(conf, "recipe", name).get("defaults", []) for key, value in node.items()}


def _sort_out(overrides: list[str], conf: Path, problems: list[str]) -> tuple[dict[str, str], list[tuple[str, Any]]]:
    """Overrides that choose an option of a group, and overrides that set a value."""
    groups, choices, values = settings.groups(conf), dict[str, str](), list[tuple[str, Any]]()
    for text in overrides:
        name, equals, typed = text.partition("=")
        if equals and name in _AS_TYPED:
            values.append((name, None if typed == "null" else typed.replace("${", "\\${")))
            continue
        try:
            (parsed,) = OverridesParser.create().parse_overrides([text])
        except HydraException as error:
            problems.append(f"{text}: not of the form key=value ({_first_line(error)})")
            continue
        key = parsed.key_or_group
        if parsed.is_add() or parsed.is_force_add() or parsed.is_delete() or parsed.is_sweep_override():
            problems.append(f"{text}: expected plain key=value (no + or ~; several values are for align sweep)")
        elif key in groups:
            option = str(parsed.value())
            if wrong := settings.unknown(conf, key, option):
                problems.append(wrong)
            else:
                choices[key] = option
        elif renamed(key) != key:
            problems.append(f"{key}: is now {renamed(key)}")
        elif key in NEVER:
            problems.append(f"{key}: {NEVER[key]}")
        elif str(parsed.value()) in MOVED:
            problems.append(f"{key}: {parsed.value()} is now {MOVED[str(parsed.value())]}")
        else:
            values.append((key, parsed.value()))
    return choices, values


def _apply(cfg: DictConfig, key: str, value: Any, problems: list[str]) -> None:
    node: Any = cfg
    done: list[str] = []
    for name in key.split("."):
        keys = [str(k) for k in node] if isinstance(node, DictConfig) else []
        if name not in keys and not (isinstance(node, DictConfig) and name.isdigit() and int(name) in node):
            if "later" in done:  # iteration numbers and settings not set before are fine there
                node = None
                break
            place = f"{'.'.join(done)} has no {name!r}" if done else f"there is no {name!r}"
            problems.append(f"{key}: unknown key, {place}{_deeper(cfg, done, key) or nearest(name, keys)}")
            return
        done.append(name)
        node = node.get(name) if not name.isdigit() or name in keys else node.get(int(name))
    if isinstance(node, DictConfig) and not isinstance(value, dict):
        problems.append(f"{key}: is a group of settings ({', '.join(map(str, node))}), set one of them")
        return
    if not is_later(key):
        _hold(cfg, key)
    OmegaConf.update(cfg, key, value, merge=isinstance(value, dict))


def is_later(key: str) -> bool:
    """Whether the key gives a value per iteration: objective.later.2.alpha."""
    return "later" in key.split(".")


def _hold(cfg: DictConfig, key: str) -> None:
    """A value the user gives holds in every iteration: what a file has of that key under `later` goes."""
    names = key.split(".")
    for i in range(1, len(names)):
        group = OmegaConf.select(cfg, ".".join(names[:i]))
        later = group.get("later") if isinstance(group, DictConfig) else None
        for node in [] if later is None else later.values():
            holder = OmegaConf.select(node, ".".join(names[i:-1])) if names[i:-1] else node
            if isinstance(holder, DictConfig) and names[-1] in holder:
                del holder[names[-1]]


def _deeper(cfg: DictConfig, done: list[str], key: str) -> str:
    """' (did you mean reward.scorer.wanted?)' for `reward.wanted`: the key as it stands further down in its group."""
    if not done:
        return ""
    group, end = done[0], key.removeprefix(".".join(done))
    inside = flat(OmegaConf.to_container(cfg[group], resolve=False), group) if OmegaConf.is_config(cfg[group]) else {}
    found = [name for name in inside if name.endswith(end)]
    return f" (did you mean {' or '.join(found[:3])}?)" if found else ""


def _first_line(error: BaseException) -> str:
    where = f"{error.full_key}: " if isinstance(error, OmegaConfBaseException) and error.full_key else ""
    return where + (str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
