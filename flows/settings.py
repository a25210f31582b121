"""Where a setting that no yaml names comes from: the dataclass that reads it.

Three things give a key its default, and no yaml repeats one:

    module: pipeline.objectives.dpo     a part: the fields of the module's Settings stand beside `module`
    n: ${sampling.n}                    conf/stages.yaml: `sampling.n` is what the field `n` of that stage's Settings is
    a stage without an entry there      its Settings and Runtime as they are

A module of a group's package is an option of the group without a file of its own: `objective=simpo`.
"""

import ast
import dataclasses
import functools
import importlib
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from flows.attempts import Attempts
from flows.notify import Notify
from pipeline import tracking
from pipeline.config import flat, imported, load_plugin, problems_of, setting
from pipeline.errors import nearest
from pipeline.stage import Seeds, load

ROOT = Path(__file__).resolve().parent.parent
# Keys whose value is a path of the user's.
PATHS = ("data.root", "data.new", "model.path", "model.base", "reward.path", "reward.base", "reward.weak",
         "reward.scorer.policy", "reward.scorer.reference", "reward.bench.root", "evaluation.watch.root")
BARE = "bare"  # a part with `bare: true` gets no defaults: what it names is all of it
_WIRE = re.compile(r"^\$\{([a-z_][\w.]*)\}$")


@dataclass(frozen=True)
class Package:
    """Where a group's parts are: folder under pipeline/, what each of them declares, and the option's key for it."""

    folder: str
    contract: str
    key: str = ""


PACKAGES = {
    "objective": Package("objectives", "OBJECTIVE"),
    "selection": Package("selection", "RULE"),
    "negatives": Package("negatives", "DRAW"),
    "reward": Package("rewards", "SCORER", "scorer"),
    "data": Package("formats", "FORMAT", "format"),
    "replay": Package("replay", "REPLAY"),
}
CONTRACTS = (*(package.contract for package in PACKAGES.values()), "BACKEND", "LAUNCHER", "AUXILIARY", "JUDGMENTS")


@dataclass(frozen=True)
class Hardware:
    """What conf/hardware says beside what the stages take from it."""

    training: dict[str, Any]
    judge: dict[str, Any] = dataclasses.field(default_factory=dict)
    grace_seconds: float = setting(20.0, low=0)  # between SIGTERM and SIGKILL when a stage is stopped
    timeout_minutes: float = setting(0.0, low=0)  # of one try of a step; 0: no limit
    retries: int = setting(0, low=0)  # of a step whose process failed: again, from its last checkpoint or part on
    stages: dict[str, Attempts] = dataclasses.field(default_factory=dict)  # where one differs: {sft: {retries: 2}}
    warm_workers: bool = True  # steps are forks of a process that has imported torch; on CUDA each starts anew
    memory_gb: float | None = setting(None, above=0)  # of the device that trains; null: this machine's
    jobs: int = setting(1, low=1)  # steps at a time, where none reads from the other and devices are left (docs/gpu.md)
    devices: int | None = setting(None, low=1)  # CUDA devices of a node; null: those that torch can use here

    def check(self) -> list[tuple[str, str]]:
        known = {path.stem for path in (ROOT / "pipeline/stages").glob("[!_]*.py")}
        return [(f"stages.{one}", f"no such stage{nearest(one, known)}") for one in self.stages if one not in known]


# Keys of the configuration itself.
ROOTS: dict[str, Any] = {"hardware": Hardware, "tracking": tracking.Settings, "notify": Notify, "seeds": Seeds}


def groups(conf: Path) -> list[str]:
    """What a user chooses an option of; conf/steps is for recipes, conf/reproduce for `align reproduce`."""
    found = {p.name for p in conf.iterdir() if p.is_dir() and not p.name.startswith("_")}
    return sorted(found - {"steps", "reproduce"})


def options(conf: Path, group: str) -> list[str]:
    """What `group=NAME` may name: the files of conf/GROUP and the parts of its package."""
    files = {path.stem for path in (conf / group).glob("*.yaml")}
    return sorted(files | ({path.stem for path in part_files(group)} if (conf / group).is_dir() else set()))


def part_files(group: str) -> list[Path]:
    """The modules of the group's package that declare its contract, told from their source without loading them."""
    package = PACKAGES.get(group)
    if package is None:
        return []
    paths = sorted((ROOT / "pipeline" / package.folder).glob("*.py"))
    return [path for path in paths if package.contract in _declared(path)]


def unknown(conf: Path, group: str, option: str) -> str | None:
    """What is wrong with `group=option`, None where there is such an option."""
    known, package = options(conf, group), PACKAGES.get(group)
    if option in known:
        return None
    file = f"pipeline/{package.folder}/{option}.py" if package else ""
    if package and (ROOT / file).is_file():
        return (f"{group}: {file} is no option, it declares no {package.contract} = {package.contract.title()}(...); "
                f"what it may declare is in pipeline.{package.folder}.contract")
    return f"{group}: no {group} named {option!r}{nearest(option, known)}"


@functools.cache
def _declared(path: Path) -> frozenset[str]:
    """The names in capitals that a module assigns to, with or without a type."""
    found: list[ast.expr] = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign):
            found += node.targets
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            found.append(node.target)
    return frozenset(target.id for target in found if isinstance(target, ast.Name) and target.id.isupper())


def part_node(group: str, module: Path) -> dict[str, Any]:
    """The option a part is where no file of conf says more."""
    package = PACKAGES[group]
    node = {"module": f"pipeline.{package.folder}.{module.stem}"}
    return {package.key: node} if package.key else node


def require_part(group: str, option: str) -> None:
    """Raises UserError where the option's own module declares something its contract does not have."""
    if any(path.stem == option for path in part_files(group)):
        package = PACKAGES[group]
        contract = vars(importlib.import_module(f"pipeline.{package.folder}.contract"))[package.contract.title()]
        load_plugin(f"pipeline.{package.folder}.{option}", group, contract)


def option_node(conf: Path, group: str, option: str) -> dict[str, Any]:
    """What an option's file says, without one the module of its name."""
    path = conf / group / f"{option}.yaml"
    if not path.is_file():
        return part_node(group, Path(option))
    return plain(OmegaConf.load(path), resolve=False)


def plain(node: Any, resolve: bool) -> dict[str, Any]:
    """A mapping of OmegaConf's as a dict. Raises what OmegaConf raises where interpolations cannot be resolved."""
    found = OmegaConf.to_container(node, resolve=resolve)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def wires(stages: Any) -> dict[str, str]:
    """What conf/stages.yaml says, read backwards: a stage's setting -> the key a user would change."""
    return {where: match[1] for where, value in flat(stages, "stage").items()
            if isinstance(value, str) and (match := _WIRE.match(value))}


def filled(config: Mapping[str, Any], wired: Mapping[str, str]) -> dict[str, Any]:
    """`config` with the default of every setting it does not name.

    config: the groups as composed, `stage` as in conf/stages.yaml, not resolved. wired: of `wires`.
    """
    out = {key: node if key in ("stage", "recipe") else _with_parts(node) for key, node in config.items()}
    out |= {key: completed(schema, out.get(key) or {}) for key, schema in ROOTS.items()}
    out["stage"] = {name: _stage(name, config["stage"].get(name) or {}) for name in [*config["stage"], *stages()]}
    for inner, outer in wired.items():
        hint, default = at_stage(inner)
        schema, given = dataclass_in(hint), get(out, outer)
        if schema is not None and isinstance(given, dict):
            put(out, outer, completed(schema, given))
        elif given is dataclasses.MISSING and default is not dataclasses.MISSING:
            put(out, outer, default)
    return out


def root_problems(config: Mapping[str, Any], told: set[str]) -> list[str]:
    """Of ROOTS; of `seeds` only where `seed`, which they are by default, is not among the keys told of."""
    return [problem for key, schema in ROOTS.items() if key != "seeds" or "seed" not in told
            for problem in problems_of(schema, config[key], key)]


def renewed(config: Mapping[str, Any], wired: Mapping[str, str]) -> dict[str, Any]:
    """The configuration of an older run with the keys of today: a key it did not have stands where the stage had it."""
    out = {**config, "stage": {name: _stage(name, config["stage"].get(name) or {}) for name in stages()}}
    for inner, outer in wired.items():
        if get(out, outer) is dataclasses.MISSING and (value := get(out, inner)) is not dataclasses.MISSING:
            put(out, outer, value)
    return out


def stages() -> list[str]:
    return sorted(path.stem for path in stage_file("*").parent.glob("[a-z]*.py"))


def stage_file(name: str) -> Path:
    return ROOT / "pipeline" / "stages" / f"{name}.py"


def _stage(name: str, node: dict[str, Any]) -> dict[str, Any]:
    stage = load(name)
    schemas = {"settings": stage.Settings, "runtime": stage.runtime}
    given = {part: node.get(part) or {} for part in schemas}
    return node | {part: completed(schemas[part], value) if isinstance(value, dict) else value
                   for part, value in given.items()}


def _with_parts(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    out = {key: _with_parts(value) for key, value in node.items() if key != BARE}
    schema = None if node.get(BARE) else part_schema(node.get("module"))
    return out if schema is None else completed(schema, out)


def part_schema(module: Any) -> Any:
    """The Settings of a part by its dotted path; None where there is none (`load_part` says why)."""
    try:
        names = vars(imported(module)) if isinstance(module, str) else {}
    except (ImportError, TypeError, ValueError):
        return None
    return next((names[contract].Settings for contract in CONTRACTS if contract in names), None)


def completed(schema: Any, node: Mapping[str, Any]) -> dict[str, Any]:
    """`node` and, for each field of dataclass `schema` it lacks, the default as plain data."""
    out = dict(node)
    for field in dataclasses.fields(schema):
        inner, default = dataclass_in(hints(schema)[field.name]), default_of(field)
        if field.name not in out and default is not dataclasses.MISSING:
            out[field.name] = default
        elif inner is not None and isinstance(out.get(field.name), dict):
            out[field.name] = completed(inner, out[field.name])
    return out


def at_stage(inner: str) -> tuple[Any, Any]:
    """Type and default of `stage.NAME.settings.KEY...` or `stage.NAME.runtime`; (None, MISSING) where no field is."""
    _, name, part, *path = inner.split(".")
    hint: Any = {"settings": load(name).Settings, "runtime": load(name).runtime}.get(part)
    default: Any = dataclasses.MISSING
    for key in path:
        field = field_of(dataclass_in(hint), key)
        if field is None:
            return None, dataclasses.MISSING
        hint, default = hints(dataclass_in(hint))[key], default_of(field)
    return hint, default


def field_of(schema: Any, key: str) -> Any:
    return None if schema is None else next((f for f in dataclasses.fields(schema) if f.name == key), None)


def default_of(field: Any) -> Any:
    """A field's default as plain data, MISSING where it has none."""
    return _plain(field.default if field.default_factory is dataclasses.MISSING else field.default_factory())


@functools.cache
def hints(schema: Any) -> dict[str, Any]:
    return typing.get_type_hints(schema)


def dataclass_in(hint: Any) -> Any:
    """The dataclass a type is, alone or beside None; else None."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return next((option for option in options if dataclasses.is_dataclass(option)), None)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def get(config: Any, key: str) -> Any:
    """The value at a dotted key, MISSING where there is none."""
    for name in key.split("."):
        if not isinstance(config, dict) or name not in config:
            return dataclasses.MISSING
        config = config[name]
    return config


def put(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; mappings on the way are copied, not changed."""
    name, _, rest = key.partition(".")
    if not rest:
        config[name] = value
        return
    config[name] = dict(config.get(name) or {})
    put(config[name], rest, value)
