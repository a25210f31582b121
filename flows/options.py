"""`align options`: the groups, a group's options, an option's settings with type, range, default and explanation.

Beside the groups: the keys that conf/config.yaml has of its own (`train`, `seed`), and the settings of each stage
(`stage.tokenize`), also those that no group feeds.

Everything is read where it is true: the dataclass's fields, the string or comment at each of them in the module's
source, and the comments of the option's file in conf. Imports no torch.
"""

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

from flows import presets, settings, trainings
from flows.compose import COMPANIONS, CONF, Top, composed_groups
from pipeline.config import allowed, flat
from pipeline.errors import UserError, nearest
from pipeline.stage import load

WIDTH = 80
STAGE = "stage"
_COMMENT = re.compile(r"(?:^|\s)#\s?(.*)$")
_BESIDE = re.compile(r"^ *([\w.]+):.*? # (.*)$", re.MULTILINE)  # a key, dots and all, and the comment in its line
_KEY = re.compile(r"^( *)(?:- )?([A-Za-z_]\w*):")
_TAKEN = re.compile(r"\$\{(?:oc\.select:)?([a-z_][\w.]*)[,}]")  # the key in ${a.b} and ${oc.select:a.b,null}


@dataclass(frozen=True)
class Setting:
    """One key of an option: what it may be, what it is if nothing is said, and what it means."""

    key: str
    allowed: str
    value: Any
    text: str


def show(words: list[str], conf: Path = CONF) -> int:
    """Print the groups, for GROUP its options, for GROUP=OPTION its settings; so too `train`, `stage`, `stage.NAME`.

    Raises UserError for an unknown name.
    """
    if problems := [f"options: {wrong}" for word in words if (wrong := _unknown(conf, word))]:
        raise UserError(*problems)
    for word in words:
        print("\n".join(_said(conf, word)))
    if words:
        return 0
    rows = [(group, ", ".join(settings.options(conf, group))) for group in settings.groups(conf)]
    rows += [(block, ", ".join(item.key.removeprefix(f"{block}.") for item in settings_of(block, "", conf)))
             for block in blocks(conf)]
    print("\n".join(_rows([*rows, (STAGE, ", ".join(settings.stages()))])))
    print("\nalign options GROUP lists its options, align options GROUP=OPTION the settings\nof one; "
          f"{', '.join(blocks(conf))} and {STAGE}.NAME have settings and no options.")
    print("\n".join(_listed(top_settings(conf))))
    return 0


def blocks(conf: Path) -> list[str]:
    """Keys with settings that are no group: `train`."""
    return [key for key, node in settings.plain(OmegaConf.load(conf / "config.yaml"), resolve=False).items()
            if isinstance(node, dict) and key not in settings.groups(conf)]


def _unknown(conf: Path, word: str) -> str | None:
    """What is wrong with a word of the command line, None where it names something."""
    name, equals, option = word.partition("=")
    known = [*settings.groups(conf), *blocks(conf), STAGE]
    stages = [f"{STAGE}.{stage}" for stage in settings.stages()]
    if name in settings.groups(conf):
        wrong = settings.unknown(conf, name, option) if option else None
        return wrong.removeprefix(f"{name}: ") if wrong else None
    if name.startswith(f"{STAGE}.") and name not in stages:
        return f"no stage named {name.partition('.')[2]!r}{nearest(name, stages)}"
    if name not in (*known, *stages):
        return f"no group named {name!r}{nearest(name, known)}"
    way = f"{STAGE}.NAME" if name == STAGE else name
    return f"{name} has no options, expected align options {way}" if equals else None


def _said(conf: Path, word: str) -> list[str]:
    group, _, option = word.partition("=")
    if group == STAGE:
        return _rows([(name, _first(_about_stage(name))) for name in settings.stages()])
    if group.startswith(f"{STAGE}."):
        name = group.partition(".")[2]
        return [*textwrap.wrap(f"{group}: {_about_stage(name)}", WIDTH), *_listed(stage_settings(name, conf))]
    if group in blocks(conf):
        return _listed(settings_of(group, "", conf))[1:]
    if not option:
        return _rows([(name, first_sentence(conf, group, name)) for name in settings.options(conf, group)])
    settings.require_part(group, option)
    lines = textwrap.wrap(f"{group}={option}: {_about(conf, group, option)}", WIDTH)
    lines += _listed(settings_of(group, option, conf))
    return [*lines, *_apart(conf, group, option), *_brought(conf, group, option)]


def _apart(conf: Path, group: str, option: str) -> list[str]:
    """What a file has for a model's size, an objective or a word, and its comment above them."""
    node = settings.option_node(conf, group, option) | composed_groups({group: option}, conf=conf)[group]
    comments, lines = _comments(conf, group, option), list[str]()
    for name in (name for name in (*trainings.EXTRA, *presets.WORDS.values()) if name in node):
        lines += ["", *textwrap.wrap(comments[f"{group}.{name}"], WIDTH)]
        for case, values in node[name].items():
            text = ", ".join(f"{key} = {_value(value)}" for key, value in flat(values).items())
            lines += _indented(f"{f'{case:g}' if isinstance(case, float) else case}: {text}")
    return lines


def _brought(conf: Path, group: str, option: str) -> list[str]:
    """The companions, one a line, each with its comment: a published recipe's source of the value."""
    brought = settings.option_node(conf, group, option).get(COMPANIONS)
    if not brought:
        return []
    sources = dict(_BESIDE.findall((conf / group / f"{option}.yaml").read_text()))
    texts = [f"{k} = {_value(v)}" + (f"  ({sources[k]})" if k in sources else "") for k, v in brought.items()]
    return ["", "brings along:", *itertools.chain.from_iterable(map(_indented, texts))]


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="        ")


def _rows(rows: list[tuple[str, str]]) -> list[str]:
    wide = max(len(name) for name, _ in rows)
    return [f"{name:{wide}}  {textwrap.shorten(text, WIDTH - wide - 2, placeholder=' ...')}" for name, text in rows]


def _listed(items: list[Setting]) -> list[str]:
    """An empty line before each."""
    lines = []
    for item in items:
        lines += ["", *textwrap.wrap(f"{item.key} = {_value(item.value)}", WIDTH, subsequent_indent="    ")]
        for text in filter(None, (item.allowed, item.text)):
            lines += textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return lines


def _value(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "(none: give one)"
    if isinstance(value, str) and value.startswith("$"):
        return f"(that of {', '.join(_TAKEN.findall(value)) or value})"
    return json.dumps(value, default=str)


def top_settings(conf: Path = CONF) -> list[Setting]:
    """The keys that stand in no group."""
    given, comments = _defaults(conf), _comments_in(conf / "config.yaml", "")
    return [Setting(field.name, allowed(field, settings.hints(Top)[field.name]), given[field.name],
                    comments.get(field.name, "")) for field in dataclasses.fields(Top)]


@functools.cache
def _defaults(conf: Path) -> dict[str, Any]:
    return composed_groups({}, conf=conf)


def stage_settings(name: str, conf: Path = CONF) -> list[Setting]:
    """Every setting of a stage. One that a group feeds has for a value the expression that names the group's key."""
    node, stage = _defaults(conf)[STAGE][name], load(name)
    found: list[Setting] = []
    for part, schema in (("settings", stage.Settings), ("runtime", stage.runtime)):
        where = f"{STAGE}.{name}.{part}"
        found += _walk(node[part], where, schema, {}, {}) if isinstance(node[part], dict) else [
            Setting(where, "", node[part], "How this machine does it; never changes a result's key.")]
    return found


def settings_of(group: str, option: str, conf: Path = CONF) -> list[Setting]:
    """Every key of an option, in the order of its dataclass, with the value it has if nothing is said.

    option: "" for a block without options.
    """
    found = composed_groups({group: option}, conf=conf) if option else _defaults(conf)
    trainings.strip(found)
    raw = OmegaConf.create(found)
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
            yield Setting(where, allowed(field, hint) if field else _type(value), value, text)


def _type(value: Any) -> str:
    """Of a key that no dataclass has, as far as its default tells."""
    return allowed(None, type(value)) if isinstance(value, (bool, int, float, str)) else ""


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
    return _first(_about(conf, group, option))


def _first(text: str) -> str:
    return re.split(r"(?<=[^.]\.)\s(?=[A-Z])", text)[0]


def _about(conf: Path, group: str, option: str) -> str:
    """The head comment of the option's file, else the first paragraph of its module's docstring."""
    path = conf / group / f"{option}.yaml"
    if path.is_file():
        lines = [line for line in path.read_text().splitlines() if "# @package" not in line]
        return " ".join(line[1:].strip() for line in itertools.takewhile(lambda line: line[:1] == "#", lines))
    return _says(next(path for path in settings.part_files(group) if path.stem == option))


def _about_stage(name: str) -> str:
    return _says(settings.stage_file(name))


def _says(module: Path) -> str:
    """The first paragraph of a module's docstring."""
    return " ".join((ast.get_docstring(ast.parse(module.read_text())) or "").partition("\n\n")[0].split())


def _comments(conf: Path, group: str, option: str) -> dict[str, str]:
    """Dotted key -> the comment above or beside it in the option's file, those it builds on, and conf/config.yaml."""
    found = _comments_in(conf / "config.yaml", "")
    bases = settings.option_node(conf, group, option).get("defaults", []) if option else []
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
