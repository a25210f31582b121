"""Answers as the file a benchmark's own tools read: model_outputs.json of AlpacaEval, model_answer/ of Arena-Hard and
MT-Bench. One answer per prompt; prompts without one are counted.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.config import load_part, part_problems
from pipeline.errors import UserError
from pipeline.formats.contract import Format
from pipeline.records import Group
from pipeline.stage import Context, Stage


@dataclass(frozen=True)
class Settings:
    format: dict[str, Any]  # of the data; one that can write answers
    model: str  # the name the answers go by

    def check(self) -> list[tuple[str, str]]:
        problems = part_problems(self.format, "format", Format)
        if not problems and load_part(self.format, "format", Format).plugin.export is None:
            problems.append(("format.module", f"{self.format['module']} cannot be exported to; use data=alpaca_eval, "
                                              "arena_hard or mt_bench"))
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.model):
            problems.append(("model", f"{self.model!r}, expected letters, digits and . _ -: it becomes a file's name"))
        return problems


def run(context: Context) -> None:
    from pipeline import tables

    settings: Settings = context.settings
    part = load_part(settings.format, "data.format", Format)
    assert part.plugin.export is not None  # Settings.check
    second = context.optional("second")
    later = {} if second is None else {g.id: g for g in answered(tables.read(second), context, "no second answer")}
    groups = answered(tables.read(context.one("groups")), context, "no answer")
    written = part.plugin.export(groups, later, settings.model, context.out, part.settings)
    context.report.count(answers=written, second_answers=len(later))


def answered(groups: Iterable[Group], context: Context, reason: str) -> Iterator[Group]:
    """The groups with an answer, in order. Raises UserError for one with several: nobody could say which is meant."""
    for group in groups:
        if len(group.completions) > 1:
            raise UserError(f"export: prompt {group.id!r} has {len(group.completions)} answers, expected one; sample "
                            "one with sampling=single")
        if group.completions:
            yield group
        else:
            context.report.drop(reason)


STAGE = Stage(Settings, run, version=1, inputs={"groups": "one", "second": "optional"}, seeded=False)
