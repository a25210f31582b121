"""Plain data -> frozen dataclasses, with every problem reported at once.

The dataclass is the schema: its annotations are the types, `setting(...)` adds ranges and choices, and a
`check()` method may return further problems. Each problem names the dotted key, what was found, what was expected.
"""

import dataclasses
import importlib
import math
import os
import pkgutil
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pipeline.errors import UserError, nearest

META = "alignloop"
_MISSING = dataclasses.MISSING


def setting(
    default: Any = _MISSING, *, low: float | None = None, high: float | None = None, above: float | None = None,
    below: float | None = None, choices: tuple[Any, ...] | None = None, added: bool = False,
) -> Any:
    """A field with a range: low <= x <= high, above < x < below, or one of `choices`. `added`: see `stage.keyed`."""
    meta = {META: {"low": low, "high": high, "above": above, "below": below, "choices": choices, "added": added}}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=meta)
    if default is _MISSING:
        return dataclasses.field(metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


def build(cls: Any, data: Any, where: str = "") -> Any:
    """Build dataclass `cls` from plain data. Raises UserError with one line per problem."""
    problems: list[str] = []
    made = _dataclass(cls, data, where, problems)
    if problems:
        raise UserError(*problems)
    return made


def problems_of(cls: Any, data: Any, where: str = "") -> list[str]:
    """The problems `build` would raise, as a list (empty: it builds)."""
    try:
        build(cls, data, where)
    except UserError as error:
        return error.problems
    return []


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _dataclass(cls: Any, data: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(data, dict):
        problems.append(f"{where or cls.__name__}: expected a mapping, got {data!r}")
        return None
    before = len(problems)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in data:
        if key not in fields:
            problems.append(f"{_join(where, str(key))}: unknown key{nearest(str(key), fields)}")
    values: dict[str, Any] = {}
    for name, spec in fields.items():
        if name in data:
            values[name] = _value(hints[name], data[name], _join(where, name), problems)
            _check_range(spec, values[name], _join(where, name), problems)
        elif spec.default is _MISSING and spec.default_factory is _MISSING:
            problems.append(f"{_join(where, name)}: missing, expected {_describe(hints[name])}")
    if len(problems) > before:
        return None
    made = cls(**values)
    problems += [f"{cls.__module__}.{cls.__name__}: no hook {name!r} (did you mean check?)"
                 for name, of in vars(cls).items()
                 if callable(of) and name != "check" and "did you mean" in nearest(name, ["check"])]
    check = getattr(made, "check", None)
    if check is not None:
        problems.extend(f"{_join(where, key)}: {text}" for key, text in check())
    return made


def _value(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        options = [a for a in args if a is not type(None)]
        for option in options:
            trial: list[str] = []
            made = _value(option, value, where, trial)
            if not trial:
                return made
        if len(options) == 1:
            problems.extend(trial)
        else:
            problems.append(f"{where}: expected {_describe(hint)}, got {value!r}")
        return None
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, value, where, problems)
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            problems.append(f"{where}: expected {_describe(hint)}, got {value!r}")
            return None
        return origin(_value(args[0], v, f"{where}[{i}]", problems) for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            problems.append(f"{where}: expected {_describe(hint)}, got {value!r}")
            return None
        return {_value(args[0], k, where, problems): _value(args[1], v, _join(where, str(k)), problems)
                for k, v in value.items()}
    return _scalar(hint, value, where, problems)


def _scalar(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and is_number and math.isfinite(value):
        return float(value)  # so that 1 and 1.0 are one setting
    if hint is int and is_number and float(value).is_integer():
        return int(value)
    if hint in (bool, str, dict) and isinstance(value, hint):
        return value
    problems.append(f"{where}: expected {_describe(hint)}, got {value!r}")
    return None


def _check_range(spec: Any, value: Any, where: str, problems: list[str]) -> None:
    limits = spec.metadata.get(META)
    if limits is None or value is None:
        return
    for item in value if isinstance(value, (list, tuple)) else (value,):
        if limits["choices"] is not None:
            if item not in limits["choices"]:
                names = [str(c) for c in limits["choices"]]
                problems.append(f"{where}: {item!r} is not allowed, expected one of {', '.join(names)}")
            continue
        if not isinstance(item, (int, float)):
            continue
        too_low = (limits["low"] is not None and item < limits["low"]) or (
            limits["above"] is not None and item <= limits["above"])
        too_high = (limits["high"] is not None and item > limits["high"]) or (
            limits["below"] is not None and item >= limits["below"])
        if too_low or too_high:
            problems.append(f"{where}: {item!r} is out of range, expected {_range(limits)}")


def _range(limits: dict[str, Any]) -> str:
    left = f"{limits['low']} <= " if limits["low"] is not None else ""
    left = f"{limits['above']} < " if limits["above"] is not None else left
    right = f" <= {limits['high']}" if limits["high"] is not None else ""
    right = f" < {limits['below']}" if limits["below"] is not None else right
    return f"{left}x{right}"


def allowed(field: Any, hint: Any) -> str:
    """What a field may be, in words: "a number, 0.0 < x"; "one of sum, avg". field None: what the type says."""
    limits = (field.metadata.get(META) if field else None) or {}
    if limits.get("choices"):
        return "one of " + ", ".join(str(choice) for choice in limits["choices"])
    bounds = _range(limits) if any(limits.get(key) is not None for key in ("low", "high", "above", "below")) else ""
    return ", ".join(filter(None, (_describe(hint), bounds)))


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else _describe(a) for a in args)
    if origin in (list, tuple):
        return f"a list of {_describe(args[0])}"
    if origin is dict:
        return f"a mapping of {_describe(args[0])} to {_describe(args[1])}"
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", dict: "a mapping"}
    return plain.get(hint, getattr(hint, "__name__", str(hint)))


P = TypeVar("P")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Part(Generic[P]):
    """A pluggable part: what its module declares, and its built Settings."""

    name: str
    """The module's dotted path."""

    plugin: P
    """Its contract, filled in: an Objective, a Rule, a Scorer ..."""

    settings: Any

    def of(self, field: T | Callable[[Any], T]) -> T:
        """A field of the contract that is a constant for some modules and a function of the settings for others."""
        return settled(field, self.settings)


def settled(field: T | Callable[[Any], T], settings: Any) -> T:
    return field(settings) if callable(field) else field


def imported(name: str) -> types.ModuleType:
    """The module of that name. A user's own may lie in the folder the command is given in: it is looked at last, so
    that a file there takes no other module's place. Raises what the import raises.
    """
    here = os.getcwd()
    sys.path.append(here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    finally:
        sys.path.reverse()
        sys.path.remove(here)
        sys.path.reverse()


def load_part(spec: Any, where: str, contract: type[P]) -> Part[P]:
    """A config node `{module: pipeline.objectives.dpo, beta: 0.1}` -> its OBJECTIVE with `Settings(beta=0.1)`.

    Any importable module that declares the contract will do, so a user's own package plugs in by its dotted path.
    Raises UserError for an unknown module (with the nearest ones beside it) and for every bad setting.
    """
    if not isinstance(spec, dict) or not isinstance(spec.get("module"), str):
        raise UserError(f"{where}.module: missing, expected a module's dotted path such as pipeline.objectives.dpo")
    plugin: Any = load_plugin(spec["module"], where, contract)
    values = {k: v for k, v in spec.items() if k != "module"}
    return Part(spec["module"], plugin, build(plugin.Settings, values, where))


def load_plugin(name: str, where: str, contract: type[P]) -> P:
    """What the module `name` declares as the contract's name in capitals: OBJECTIVE = Objective(...).

    Raises UserError where there is no such module, where it declares nothing of the kind, and for a misspelt hook.
    """
    if not name or name.startswith("."):
        raise UserError(f"{where}.module: {name!r}, expected a module's dotted path such as pipeline.objectives.dpo")
    try:
        module = imported(name)
    except ModuleNotFoundError as error:
        if error.name and not (name == error.name or name.startswith(error.name + ".")):
            raise UserError(f"{where}.module: {name} needs {error.name}, which is not installed") from None
        close = nearest(name.rpartition(".")[2], _siblings(name))
        raise UserError(f"{where}.module: no module {name!r}{close}") from None
    except ImportError as error:
        raise UserError(f"{where}.module: {name}: {error}") from None
    except TypeError as error:
        raise _misdeclared(name, where, contract, error) or error from None
    kind, known = contract.__name__, f"; what it may declare is in {contract.__module__}"
    found = vars(module).get(kind.upper())
    if found is None:
        close = nearest(kind.upper(), [n for n in vars(module) if n.isupper()])
        raise UserError(f"{where}.module: {name} has no {kind.upper()} = {kind}(...){close}, so it is not of use "
                        f"here{known}")
    if not isinstance(found, contract):
        raise UserError(f"{where}.module: {name}: {kind.upper()} is a {type(found).__name__}, expected an "
                        f"{kind}(...){known}")
    return found


def _misdeclared(name: str, where: str, contract: Any, error: TypeError) -> UserError | None:
    """What is wrong in what the module declares; None where the error comes from elsewhere."""
    called, found, text = str(error).partition(".__init__() ")
    made = vars(importlib.import_module(contract.__module__)).get(called) if found else None
    if not dataclasses.is_dataclass(made):
        return None
    word = text.rpartition(" ")[2].strip("'") if "unexpected keyword" in text else ""
    wrong = f"no hook {word!r}{nearest(word, [f.name for f in dataclasses.fields(made)])}" if word else text
    return UserError(f"{where}.module: {name}: {called}(...): {wrong}; what it may declare is in {contract.__module__}")


def part_problems(spec: Any, where: str, contract: type) -> list[tuple[str, str]]:
    """The problems of a part as (key relative to nothing, text) pairs, for a Settings.check()."""
    try:
        load_part(spec, where, contract)
    except UserError as error:
        return [(key, text.strip()) for key, _, text in (p.partition(":") for p in error.problems)]
    return []


def _siblings(name: str) -> list[str]:
    package = name.rpartition(".")[0]
    try:
        paths = importlib.import_module(package).__path__ if package else []
    except (ImportError, AttributeError):
        return []
    return [m.name for m in pkgutil.iter_modules(paths)]


def flat(node: Any, where: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    if not isinstance(node, dict):
        return {where: node}
    return {name: one for key, value in node.items() for name, one in flat(value, _join(where, str(key))).items()}
