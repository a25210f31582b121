"""Questions with known answers, for `watch`: read, some drawn by the hash of their ids, encoded. Writes groups/."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config import load_part, part_problems, setting
from pipeline.errors import UserError
from pipeline.formats.contract import Format
from pipeline.records import Group
from pipeline.stage import Context, Stage, derive_seed


@dataclass(frozen=True)
class Settings:
    format: dict[str, Any]  # how the file is read: a data format that keeps what an answer is checked against
    count: int = setting(200, low=1)  # at most so many of them
    max_prompt_tokens: int = setting(512, low=1)  # longer ones are dropped

    def check(self) -> list[tuple[str, str]]:
        return part_problems(self.format, "format", Format)


@dataclass(frozen=True)
class Runtime:
    root: str | None = None  # the file or folder with the questions; null: none are asked


def files(settings: Settings, runtime: Runtime) -> list[Path]:
    part = load_part(settings.format, "evaluation.watch.format", Format)
    return part.plugin.files(_root(runtime), part.settings)


def run(context: Context) -> None:
    from pipeline import tables
    from pipeline.lm import folders

    settings: Settings = context.settings
    part = load_part(settings.format, "evaluation.watch.format", Format)
    known: dict[str, Group] = {}
    for _, group in part.plugin.read(_root(context.runtime), part.settings).groups():
        if group.target:  # its own answer, if it has one, is not shown
            known.setdefault(group.id, replace(group, completions=(), label=None))
        else:
            context.report.drop("without a known answer")
    if not known:
        raise UserError(f"evaluation.watch.root: {context.runtime.root} has no question with a known answer (a "
                        "reference answer, choices, instructions, tests)")
    drawn = sorted(known.values(), key=lambda group: derive_seed(0, "watch", group.id))[: settings.count]
    encoded = folders.policy_encoder(context.one("model")).encode(drawn)
    kept = [group for group in encoded if len(group.prompt_ids) <= settings.max_prompt_tokens]
    context.report.drop("prompt too long", len(drawn) - len(kept))
    context.report.count(prompts=tables.write(context.out / "groups", kept))


def _root(runtime: Runtime) -> Path:
    if runtime.root is None:
        raise UserError("evaluation.watch.root: not set, expected a file or folder with questions and their answers")
    return Path(runtime.root).expanduser()


STAGE = Stage(Settings, run, version=1, inputs={"model": "one"}, seeded=False, runtime=Runtime, files=files)
