"""Questions with known answers, for `watch`: read, some drawn by the hash of their ids, encoded. Writes groups/."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pipeline.config import load_part, part_problems, setting
from pipeline.errors import UserError
from pipeline.formats.contract import Format
from pipeline.records import Group
from pipeline.stage import Context, Stage, derive_seed

T = TypeVar("T")


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
    return _in_words(lambda: part.plugin.files(_root(runtime), part.settings))


def check(settings: Settings, runtime: Runtime) -> list[str]:
    """Whether the questions can be read, and one of them has a known answer."""
    try:
        return [] if any(group.target for group in _groups(settings, runtime)) else [_none(runtime)]
    except UserError as error:
        return error.problems


def run(context: Context) -> None:
    from pipeline import tables
    from pipeline.lm import folders

    settings: Settings = context.settings
    known: dict[str, Group] = {}
    for group in _groups(settings, context.runtime):
        if group.target:  # its own answer, if it has one, is not shown
            known.setdefault(group.id, replace(group, completions=(), label=None))
        else:
            context.report.drop("without a known answer")
    if not known:
        raise UserError(_none(context.runtime))
    drawn = sorted(known.values(), key=lambda group: derive_seed(0, "watch", group.id))[: settings.count]
    encoded = folders.policy_encoder(context.one("model")).encode(drawn)
    kept = [group for group in encoded if len(group.prompt_ids) <= settings.max_prompt_tokens]
    context.report.drop("prompt too long", len(drawn) - len(kept))
    context.report.count(prompts=tables.write(context.out / "groups", kept))


def _groups(settings: Settings, runtime: Runtime) -> Iterator[Group]:
    part = load_part(settings.format, "evaluation.watch.format", Format)
    return (group for _, group in _in_words(lambda: part.plugin.read(_root(runtime), part.settings)).groups())


def _in_words(read: Callable[[], T]) -> T:
    """What `read` gives; its problems name the data's own keys, and are told with those of the watch."""
    try:
        return read()
    except UserError as error:
        told = (problem.replace("data.root", "evaluation.watch.root") for problem in error.problems)
        raise UserError(*told) from None


def _none(runtime: Runtime) -> str:
    return (f"evaluation.watch.root: {runtime.root} has no question with a known answer (a reference answer, choices, "
            "instructions, tests)")


def _root(runtime: Runtime) -> Path:
    if runtime.root is None:
        raise UserError("evaluation.watch.root: not set, expected a file or folder with questions and their answers")
    return Path(runtime.root).expanduser()


STAGE = Stage(Settings, run, version=1, inputs={"model": "one"}, seeded=False, runtime=Runtime, files=files,
              check=check)
