"""New prompts for a run that goes on (`align run run=NAME data.new=PATH`). Writes unlabeled/.

Rows may be of any kind that data=files reads; only their prompts count. Prompts that the run has already (`known`:
those of its data, its evaluation and its earlier iterations) are left out and counted.
"""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.config import setting
from pipeline.errors import UserError
from pipeline.files import file_hash
from pipeline.formats import files as rows
from pipeline.formats import reader
from pipeline.formats.divide import full_key
from pipeline.formats.splits import Imported
from pipeline.records import Group
from pipeline.stage import Context, Stage, told

KNOWN = "prompt that the run has already"


@dataclass(frozen=True)
class Settings:
    columns: dict[str, str | None] = field(default_factory=dict)  # as data.columns
    on_bad_row: str = setting("refuse", choices=("refuse", "drop"))  # as data.on_bad_row


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
    counts = {"unlabeled": sum(made.counts.values())}
    unread = {f"unread: {key}": number for key, number in made.unread.items()}
    left_out = {f"left out: {reason}": number for reason, number in made.dropped.items()}
    return [], {**counts, **made.facts, **unread, **left_out}


def check(settings: Settings, runtime: Runtime) -> list[str]:
    return foresee(settings, runtime)[0]


def run(context: Context) -> None:
    """Raises UserError where a file has changed since it was added, and where no prompt is new."""
    from pipeline import tables

    made = _read(context.settings, context.runtime)
    known, ids = set[str](), set[str]()
    for folder in context.inputs.get("known", ()):
        for group in tables.read(folder):
            known.add(full_key(group))
            ids.add(group.id)
    new = (group for _, group in made.groups() if full_key(group) not in known)
    kept = tables.write(context.out / "unlabeled", (_prompt(group, ids) for group in new))
    total = sum(made.counts.values())
    if not kept:
        raise UserError(f"data.new: {context.runtime.root}: the run has all of its {total} prompts already, expected "
                        "new ones")
    for reason, number in {**made.dropped, KNOWN: total - kept}.items():
        context.report.drop(reason, number)
    context.report.count(unlabeled=kept, **made.facts, **{f"unread: {key}": n for key, n in made.unread.items()})


def _prompt(group: Group, ids: set[str]) -> Group:
    """The prompt alone, under an id that no other one of the run has."""
    mark = hashlib.sha256(full_key(group).encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return replace(group, completions=(), label=None, rationale=None,
                   id=f"{group.id}/{mark}" if group.id in ids else group.id)


def _read(settings: Settings, runtime: Runtime) -> Imported:
    given = files(settings, Runtime(runtime.root))
    found = [f"{file.name}:{file_hash(file)}" for file in given]
    if runtime.content and found != list(runtime.content):
        raise UserError(f"data.new: {runtime.root} has changed since it was added to the run; put back what it held, "
                        "or give the other prompts a file of their own once this iteration is done")
    made = rows.read(Path(runtime.root), rows.Settings(columns=settings.columns, on_bad_row=settings.on_bad_row,
                                                      needed=("unlabeled",)))
    if not sum(made.counts.values()):
        raise UserError(f"data.new: {runtime.root} gives no prompts; found {made.facts}, left out {made.dropped}")
    return made


STAGE = Stage(Settings, run, version=1, inputs={"known": "optional"}, seeded=False, runtime=Runtime, check=check,
              files=files, sources=sources, foresee=foresee, says=told("{unlabeled:,.0f} new prompts"))
