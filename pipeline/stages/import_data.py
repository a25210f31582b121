"""Read a data set in the format people have it in and write the four splits: sft, pref, unlabeled, eval.

Texts only; token ids are made by the next stage. Problems of the data are reported before anything runs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pipeline
from pipeline.config import Part, load_part, part_problems, setting
from pipeline.errors import UserError
from pipeline.formats.contract import Format
from pipeline.formats.divide import OVER_LIMIT
from pipeline.formats.splits import SPLITS, Imported, lacking
from pipeline.stage import Context, Counts, Stage

BUILTIN = "builtin:"


@dataclass(frozen=True)
class Settings:
    format: dict[str, Any]  # how the files of the data are read
    require: tuple[str, ...] = setting((), choices=SPLITS)  # splits that must not be empty

    def check(self) -> list[tuple[str, str]]:
        return part_problems(self.format, "format", Format)


@dataclass(frozen=True)
class Runtime:
    """Where the data are: a folder or file, relative to the working directory, or builtin:NAME."""

    root: str | None = None  # folder or file, relative to the working directory, or builtin:NAME


def files(settings: Settings, runtime: Runtime) -> list[Path]:
    """The files that will be read. Raises UserError if there are none."""
    part = _format(settings)
    return part.plugin.files(_root(part, runtime), part.settings)


def sources(settings: Settings, runtime: Runtime) -> list[str]:
    """The names of data sets that are no files here."""
    part = _format(settings)
    return part.plugin.sources(_root(part, runtime), part.settings)


def foresee(settings: Settings, runtime: Runtime) -> tuple[list[str], dict[str, int]]:
    """Every problem of the data, found by reading all of it, and what it counts there: the groups of each split, rows,
    what was read as what, keys that were not read, what is left out by reason.
    """
    try:
        made = _import(settings, runtime)
        left_out = {f"left out: {reason}": number for reason, number in made.dropped.items()}
        return [], {**made.counts, **made.facts, **unread_of(made), **left_out}
    except UserError as error:
        return error.problems, {}


def check(settings: Settings, runtime: Runtime) -> list[str]:
    """Every problem of the data; empty if there is none."""
    return foresee(settings, runtime)[0]


def lacks(settings: Settings, runtime: Runtime, wanted: dict[str, str]) -> list[str]:
    """What other steps want of the preferences that they are not."""
    return lacking(_import(settings, runtime), _place(runtime), wanted)


def run(context: Context) -> None:
    """Write the tables sft/ (K=1), pref/ (K=2 or labelled), unlabeled/ and eval/ (K=0), part by part as rows come."""
    from pipeline import tables
    from pipeline.formats import overlap

    imported = _import(context.settings, context.runtime, context.work / "rows")
    total = sum(imported.counts.values())
    resumed = _format(context.settings).plugin.resumed is not None
    written = {split: tables.count(context.out / split) if resumed else 0 for split in SPLITS}
    context.report.progress(sum(written.values()), total, "groups")
    if resumed:
        tables.write_several(context.out, SPLITS, imported.groups(written), begun=True)
    else:
        tables.write_several(context.out, SPLITS, imported.groups())
    context.report.progress(total, total, "groups")
    for reason, number in imported.dropped.items():
        context.report.drop(reason, number)
    unread = unread_of(imported)
    if imported.compared:
        context.report.count(**overlap.shared(context.out))
    if unread:  # in front, where the screen shows it
        context.report.count(**{f"unread keys {', '.join(imported.unread)}": max(unread.values())})
    context.report.count(**imported.counts, **imported.facts, eval_prompts_in_training=imported.overlap, **unread)


def unread_of(imported: Imported) -> dict[str, int]:
    """How many rows have each key that nothing reads."""
    return {f"unread: {key}": number for key, number in imported.unread.items()}


def says(counts: Counts) -> list[str]:
    """The groups of each split, then what needs a look: keys nobody reads, evaluation prompts seen in training."""
    found = [f"{split} {counts[split]:,.0f}" for split in SPLITS if counts.get(split)]
    found += [f"{name} (in {number:,.0f} rows)" for name, number in counts.items() if name.startswith("unread keys")]
    overlap = counts.get("eval_prompts_in_training")
    return found + ([f"{overlap:,.0f} evaluation prompts are in training, too"] if overlap else [])


def _import(settings: Settings, runtime: Runtime, folder: Path | None = None) -> Imported:
    """folder: where what is read is kept, for formats that can."""
    part = _format(settings)
    root, resumed = _root(part, runtime), part.plugin.resumed
    if folder is None or resumed is None:
        imported = part.plugin.read(root, part.settings)
    else:
        imported = resumed(root, part.settings, folder)
    if empty := [split for split in settings.require if not imported.counts[split]]:
        found = ", ".join(f"{split} {imported.counts[split]}" for split in SPLITS)
        raise UserError(*(_empty(split, _place(runtime), settings.require, found, imported.dropped) for split in empty))
    return imported


def _place(runtime: Runtime) -> str:
    """Where the data are, as a message begins; without a root the settings say it."""
    return f"data.root: {runtime.root}" if runtime.root else "data.sources: what they name"


def _empty(split: str, place: str, require: tuple[str, ...], found: str, dropped: dict[str, int]) -> str:
    needs = {"sft": "demonstrations", "pref": "preference pairs", "unlabeled": "prompts", "eval": "evaluation prompts"}
    left_out = f"; left out: {', '.join(f'{n} {reason}' for reason, n in dropped.items())}" if dropped else ""
    others = ",".join(one for one in require if one != "pref")
    ways = (f" (recipe=sft needs none; nor does a recipe that samples its pairs, with reward=rule or another scorer "
            f"that learns from none: data.require=[{others}])") if split == "pref" else ""
    return (f"{place} gives no {needs[split]}, and this recipe needs the split {split!r}{ways}; "
            f"found: {found}{left_out}")


def _format(settings: Settings) -> Part[Format]:
    return load_part(settings.format, "data.format", Format)


def _root(part: Part[Format], runtime: Runtime) -> Path:
    if not runtime.root and part.plugin.rootless(part.settings):
        return Path()
    if not runtime.root:
        raise UserError(f"data.root: not set, expected {part.plugin.expected}; give data.root=PATH")
    if runtime.root.startswith(BUILTIN):
        return Path(pipeline.__file__).parents[1] / "data" / runtime.root.removeprefix(BUILTIN)
    return Path(runtime.root).expanduser()


# seeded: how a data set is split belongs to the data, so that runs with other seeds are comparable
STAGE = Stage(Settings, run, version=1, inputs={}, seeded=False, runtime=Runtime, files=files, check=check,
              sources=sources, foresee=foresee, lacks=lacks, says=says, unsaid=OVER_LIMIT)
