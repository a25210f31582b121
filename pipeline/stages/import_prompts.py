"""New prompts for a run that goes on (`align run run=NAME data.new=PATH`). Writes unlabeled/, and pref/ where it joins.

Rows may be of any kind that data=files reads; their prompts count, and with `joins` their preferences. Prompts that the
run has already (`known`: those of its data, its evaluation and its earlier iterations) are left out and counted. A
preference may be about a known prompt, unless that is an evaluation's (a folder `eval` of known); one that the run has
(a folder `pref`) is left out. Rows of preferences alone give their prompts, too, to sample from.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.config import build, setting
from pipeline.errors import UserError
from pipeline.files import file_hash
from pipeline.formats import files as rows
from pipeline.formats import reader
from pipeline.formats.divide import full_key
from pipeline.formats.splits import Imported, Shares, lacking
from pipeline.records import Group
from pipeline.stage import Context, Stage, told

KNOWN, KNOWN_PAIR = "prompt that the run has already", "preference that the run has already"
EVALUATED = "preference about a prompt of the evaluation"
_NAMES = ("prompt", "instruction", "input", "system")  # of columns: what a prompt is made of


@dataclass(frozen=True)
class Settings:
    columns: dict[str, str | None] = field(default_factory=dict)  # as data.columns
    on_bad_row: str = setting("refuse", choices=("refuse", "drop"))  # as data.on_bad_row
    joins: int = setting(0, low=0, added=True)  # the iteration whose training preferences join; 0: prompts alone count
    # How preferences are read, as in data.format: lists, only, ties, labels
    format: dict[str, Any] | None = setting(None, added=True)  # noqa: RUF009


@dataclass(frozen=True)
class Runtime:
    """Where the prompts are, and what the files held when they were added."""

    root: str  # file, folder or hf:org/name@commit
    content: tuple[str, ...] = ()  # name:hash of every file, part of the key: the files may change later


def files(settings: Settings, runtime: Runtime) -> list[Path]:
    """The files that are added; none once what they held is known."""
    return [] if runtime.content else reader.files(reader.Source(runtime.root), "data.new")


def sources(settings: Settings, runtime: Runtime) -> list[str]:
    return list(runtime.content) or [runtime.root]


def foresee(settings: Settings, runtime: Runtime) -> tuple[list[str], dict[str, int]]:
    """Every problem of the rows, and what is counted there; prompts that are known are not told yet."""
    try:
        made = _read(settings, runtime)
    except UserError as error:
        return error.problems, {}
    preferences = made.counts["pref"] if settings.joins else 0
    others = sum(made.counts.values()) - preferences
    counts = {"unlabeled": others or preferences, **({"pref": preferences} if settings.joins else {})}
    unread = {f"unread: {key}": number for key, number in made.unread.items()}
    left_out = {f"left out: {reason}": number for reason, number in made.dropped.items()}
    return [], {**counts, **made.facts, **unread, **left_out}


def check(settings: Settings, runtime: Runtime) -> list[str]:
    return foresee(settings, runtime)[0]


def lacks(settings: Settings, runtime: Runtime, wanted: dict[str, str]) -> list[str]:
    """What other steps want of the preferences that they are not."""
    made = _read(settings, runtime)
    held = settings.joins and made.counts["pref"]
    return lacking(made, f"data.new: {runtime.root}", wanted) if held else []


def run(context: Context) -> None:
    """Raises UserError where a file has changed since it was added, and where no prompt is new."""
    from pipeline import tables

    made, left = _read(context.settings, context.runtime), Counter[str]()
    names = ("unlabeled", "pref") if context.settings.joins else ("unlabeled",)
    tables.write_several(context.out, names, _new(context, made, left))
    kept = {name: tables.count(context.out / name) for name in names}
    if not kept["unlabeled"]:
        raise UserError(f"data.new: {context.runtime.root}: the run has all of its {sum(made.counts.values())} prompts "
                        "already, expected new ones")
    for reason, number in {**made.dropped, **left}.items():
        context.report.drop(reason, number)
    context.report.count(**kept, **made.facts, **{f"unread: {key}": n for key, n in made.unread.items()})


def _new(context: Context, made: Imported, left: Counter[str]) -> Iterator[tuple[str, Group]]:
    """(split, group) of what the run does not have; the rest is counted in `left`."""
    from pipeline import tables

    joins, known, evaluated, ids, pairs = context.settings.joins, set[str](), set[str](), set[str](), set[str]()
    for folder in context.inputs.get("known", ()):
        for group in tables.read(folder):
            known.add(full_key(group))
            ids.add(group.id)
            evaluated |= {full_key(group)} if folder.name == "eval" else set()
            pairs |= {_content(group)} if joins and folder.name == "pref" else set()
    alone, asked = sum(made.counts.values()) == made.counts["pref"], set[str]()
    for split, group in made.groups():
        key = full_key(group)
        if split != "pref" or not joins:
            left[KNOWN] += key in known
            if key not in known:
                yield "unlabeled", _prompt(group, ids)
        elif key in evaluated or _content(group) in pairs:
            left[EVALUATED if key in evaluated else KNOWN_PAIR] += 1
        else:
            # An id that no prompt has: what is sampled of one is trained on under the prompt's
            yield "pref", replace(group, iteration=joins, id=f"{group.id}/{_mark(_content(group))}")
            if alone and key not in asked:
                asked.add(key)
                yield "unlabeled", _prompt(group, ids)


def _prompt(group: Group, ids: set[str]) -> Group:
    """The prompt alone, under an id that no other one of the run has."""
    return replace(group, completions=(), label=None, rationale=None, iteration=0,
                   id=f"{group.id}/{_mark(full_key(group))}" if group.id in ids else group.id)


def _content(group: Group) -> str:
    """What a preference says."""
    return json.dumps([[[m.role, m.content] for m in group.messages], [c.text for c in group.completions], group.label])


def _mark(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _read(settings: Settings, runtime: Runtime) -> Imported:
    given = files(settings, Runtime(runtime.root))
    found = [f"{file.name}:{file_hash(file)}" for file in given]
    if runtime.content and found != list(runtime.content):
        raise UserError(f"data.new: {runtime.root} has changed since it was added to the run; put back what it held, "
                        "or give the other prompts a file of their own once this iteration is done")
    how: dict[str, Any] = {"columns": settings.columns, "on_bad_row": settings.on_bad_row}
    if settings.joins:  # every preference is one, every other row a prompt
        own = build(rows.Settings, {**how, **(settings.format or {})})
        made = rows.read(Path(runtime.root), replace(own, shares=Shares(sft=0, pref=1, unlabeled=0, eval=0)))
    else:
        how["columns"] = {key: value for key, value in settings.columns.items() if key in _NAMES}
        made = rows.read(Path(runtime.root), rows.Settings(**how, needed=("unlabeled",)))
    if not sum(made.counts.values()):
        raise UserError(f"data.new: {runtime.root} gives no prompts; found {made.facts}, left out {made.dropped}")
    return made


STAGE = Stage(Settings, run, version=1, inputs={"known": "optional"}, seeded=False, runtime=Runtime, check=check,
              files=files, sources=sources, foresee=foresee, lacks=lacks,
              says=told("{unlabeled:,.0f} new prompts", "{pref:,.0f} new preferences"))
