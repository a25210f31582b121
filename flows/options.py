"""`align options`: the groups, a group's options, an option's settings with type, range, default and explanation.

Everything is read where it is true: the dataclass's fields, the string or comment at each of them in the module's
source, and the comments of the option's file in conf. Imports no torch.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import itertools
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from flows import settings
from flows.compose import COMPANIONS, CONF, composed_groups
from pipeline.config import allowed
from pipeline.errors import UserError, nearest

WIDTH = 80
_COMMENT = re.compile(r"(?:^|\s)#\s?(.*)$")
_KEY = re.compile(r"^( *)(?:- )?([A-Za-z_]\w*):")


@dataclass(frozen=True)
class Setting:
    """One key of an option: what it may be, what it is if nothing is said, and what it means."""

    key: str
    allowed: str
    value: Any
    text: str


def show(words: list[str], conf: Path = CONF) -> int:
    """Print the groups, for GROUP its options, for GROUP=OPTION its settings. Raises UserError for an unknown name."""
    known = settings.groups(conf)
    problems = []
    for word in words:
        group, _, option = word.partition("=")
        if group not in known:
            problems.append(f"options: no group named {group!r}{nearest(group, known)}")
        elif option and (wrong := settings.unknown(conf, group, option)):
            problems.append(f"options: {wrong.removeprefix(f'{group}: ')}")
    if problems:
        raise UserError(*problems)
    if not words:
        print("\n".join(_rows([(group, ", ".join(settings.options(conf, group))) for group in known])))
        print("\nalign options GROUP lists its options, align options GROUP=OPTION the settings of one.")
    for word in words:
        group, _, option = word.partition("=")
        print("\n".join(_settings(conf, group, option) if option else
                        _rows([(name, first_sentence(conf, group, name)) for name in settings.options(conf, group)])))
    return 0


def _rows(rows: list[tuple[str, str]]) -> list[str]:
    wide = max(len(name) for name, _ in rows)
    return [f"{name:{wide}}  {textwrap.shorten(text, WIDTH - wide - 2, placeholder=' ...')}" for name, text in rows]


def _settings(conf: Path, group: str, option: str) -> list[str]:
    settings.require_part(group, option)
    lines = textwrap.wrap(f"{group}={option}: {_about(conf, group, option)}", WIDTH)
    for item in settings_of(group, option, conf):
        value = "(none: give one)" if item.value is dataclasses.MISSING else json.dumps(item.value, default=str)
        lines += ["", *textwrap.wrap(f"{item.key} = {value}", WIDTH, subsequent_indent="    ")]
        for text in filter(None, (item.allowed, item.text)):
            lines += textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ")
    brought = settings.option_node(conf, group, option).get(COMPANIONS)
    return [*lines, "", *textwrap.wrap(f"brings along: {json.dumps(brought)}", WIDTH)] if brought else lines


def settings_of(group: str, option: str, conf: Path = CONF) -> list[Setting]:
    """Every key of an option, in the order of its dataclass, with the value it has if nothing is said."""
    raw = OmegaConf.create(composed_groups({group: option}, conf=conf))
    raw.precision = "bfloat16" if raw.precision == "auto" else raw.precision
    node = OmegaConf.to_container(raw[group], resolve=True)
    outer = {key: inner for inner, key in reversed(settings.wires(OmegaConf.to_container(raw.stage)).items())}
    schema = settings.ROOTS.get(group) or (settings.dataclass_in(_wired(outer[group])[2]) if group in outer else None)
    return list(_walk(node, group, schema, outer, _comments(conf, group, option)))


def _walk(node: Any, key: str, schema: Any, outer: dict[str, str], comments: dict[str, str]) -> Iterator[Setting]:
    """The settings under a mapping. schema: the dataclass that reads it; outer: key -> the stage setting it feeds."""
    schema = settings.part_schema(node.get("module")) or schema
    names = [field.name for field in dataclasses.fields(schema)] if schema else []
    required = {name: dataclasses.MISSING for name in names
                if name not in node and settings.default_of(settings.field_of(schema, name)) is dataclasses.MISSING}
    for name, value in {**{n: node[n] for n in names if n in node}, **node, **required}.items():
        where = f"{key}.{name}"
        owner, field = schema, settings.field_of(schema, name)
        hint = settings.hints(schema)[name] if field else None
        if where in outer and (field is None or isinstance(value, dict)):
            owner, field, hint = _wired(outer[where])
        text = "; ".join(filter(None, (docs(owner).get(field.name) if field else None, comments.get(where))))
        inner = settings.dataclass_in(hint)
        if isinstance(value, dict) and value and (inner or field is None) and name != "later":
            yield from _walk(value, where, inner, outer, comments)
        elif isinstance(value, dict) and value.get("module"):
            yield from _walk(value, where, None, outer, comments)
        elif name != "module":
            yield Setting(where, allowed(field, hint) if field else "", value, text)


def _wired(inner: str) -> tuple[Any, Any, Any]:
    """The dataclass, the field and its type of a stage's setting; (None, None, type) for a whole runtime."""
    above, _, name = inner.rpartition(".")
    hint = settings.at_stage(inner)[0]
    owner = settings.dataclass_in(settings.at_stage(above)[0]) if above.count(".") > 1 else None
    return owner, settings.field_of(owner, name), hint


@functools.cache
def docs(schema: Any) -> dict[str, str]:
    """Field -> the string below it or the comment beside it in the source of the dataclass and of those it extends."""
    found: dict[str, str] = {}
    for cls in reversed(schema.__mro__[:-1]):
        source = Path(str(sys.modules[cls.__module__].__file__)).read_text()
        lines = source.splitlines()
        body = next(n.body for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == cls.__name__)
        for node, below in zip(body, [*body[1:], None], strict=True):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            comment = _COMMENT.search(lines[(node.end_lineno or 1) - 1][node.end_col_offset or 0:])
            above = itertools.takewhile(lambda line: line.strip().startswith("# "), reversed(lines[:node.lineno - 1]))
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[node.target.id] = " ".join(str(below.value.value).split())
            else:
                said = [comment[1]] if comment else [line.strip()[2:] for line in above][::-1]
                found |= {node.target.id: " ".join(said)} if said else {}
    return found


def first_sentence(conf: Path, group: str, option: str) -> str:
    return re.split(r"(?<=[^.]\.)\s(?=[A-Z])", _about(conf, group, option))[0]


def _about(conf: Path, group: str, option: str) -> str:
    """The head comment of the option's file, else the first paragraph of its module's docstring."""
    path = conf / group / f"{option}.yaml"
    if path.is_file():
        lines = [line for line in path.read_text().splitlines() if "# @package" not in line]
        return " ".join(line[1:].strip() for line in itertools.takewhile(lambda line: line[:1] == "#", lines))
    module = next(path for path in settings.part_files(group) if path.stem == option)
    return " ".join((ast.get_docstring(ast.parse(module.read_text())) or "").partition("\n\n")[0].split())


def _comments(conf: Path, group: str, option: str) -> dict[str, str]:
    """Dotted key -> the comment above or beside it in the option's file, those it builds on, and conf/config.yaml."""
    found = _comments_in(conf / "config.yaml", "")
    bases = settings.option_node(conf, group, option).get("defaults", [])
    for name in [*(base for base in bases if base != "_self_"), option]:
        found |= _comments_in(conf / group / f"{name}.yaml", f"{group}.")
    return found


def _comments_in(path: Path, prefix: str) -> dict[str, str]:
    found, above, parents = dict[str, str](), list[str](), list[tuple[int, str]]()
    lines = path.read_text().splitlines() if path.is_file() else []
    for line in itertools.dropwhile(lambda line: line.startswith("#"), lines):  # its head says what the file is
        key, comment = _KEY.match(line), _COMMENT.search(line)
        if key is None:
            above = [*above, comment[1]] if comment else []
            continue
        parents = [*(p for p in parents if p[0] < len(key[1])), (len(key[1]), key[2])]
        text = " ".join([*above, *([comment[1]] if comment else [])])
        found |= {prefix + ".".join(name for _, name in parents): text} if text else {}
        above = []
    return found
