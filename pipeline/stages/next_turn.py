"""The second turn of a two-turn benchmark: the first question, the answer to it, the next question. Writes groups/.

The conversation is rendered anew with the policy's chat template, as a chat server would. A question whose first turn
has no answer, which has no second turn, or which has become too long is counted and left out. With `given` the answers
are those that came with the data, and their second turns come along as given answers: a baseline for both turns.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config import load_part, part_problems, setting
from pipeline.errors import UserError
from pipeline.formats.contract import Format
from pipeline.records import Completion, Group, Message
from pipeline.stage import Context, Stage


@dataclass(frozen=True)
class Settings:
    format: dict[str, Any]  # of the data; one that knows the second turns, and with `given` their answers
    given: bool = False  # the answers came with the data: take their second turns along
    max_prompt_tokens: int = setting(512, low=1)  # of both questions and the first answer; longer: dropped
    max_completion_tokens: int = setting(512, low=1)  # of given second answers; longer ones are cut

    def check(self) -> list[tuple[str, str]]:
        if problems := part_problems(self.format, "format", Format):
            return problems
        plugin, name = load_part(self.format, "format", Format).plugin, self.format["module"]
        if plugin.follow_ups is None:
            return [("format.module", f"{name} has no second turns; use data=mt_bench")]
        if self.given and plugin.given_follow_ups is None:
            return [("given", f"true, but {name} has no given answers to second turns; set it to false or use "
                              "data=mt_bench")]
        if self.given and self.format.get("answers") is None:
            return [("format.answers", "null, expected the file with the given answers")]
        return []


@dataclass(frozen=True)
class Runtime:
    root: str | None = None  # where the data are, as for import_data


def files(settings: Settings, runtime: Runtime) -> list[Path]:
    """The question files."""
    if runtime.root is None:
        raise UserError("data.root: not set, expected the folder with the questions")
    part = load_part(settings.format, "data.format", Format)
    return part.plugin.files(Path(runtime.root).expanduser(), part.settings)


def run(context: Context) -> None:
    from pipeline import tables
    from pipeline.lm import folders, template

    settings: Settings = context.settings
    asked = list(_asked(context))
    encoded = folders.policy_encoder(context.one("model")).encode(asked)
    limits = template.Limits(settings.max_prompt_tokens, settings.max_completion_tokens, "drop", "truncate")
    kept: list[Group] = []
    for group in encoded:
        within, reasons = template.limit(group, limits)
        for reason in reasons:
            context.report.drop(reason)
        kept += [] if within is None else [within]
    context.report.count(prompts=tables.write(context.out / "groups", kept))


def _asked(context: Context) -> Iterator[Group]:
    """The conversations up to the second question, yet without ids; those that cannot be made are counted."""
    from pipeline import tables

    settings, root = context.settings, Path(context.runtime.root).expanduser()
    part = load_part(settings.format, "data.format", Format)
    second, answers = part.plugin.follow_ups, part.plugin.given_follow_ups
    assert second is not None  # Settings.check, which asks for the other too where it is wanted
    turns = second(root, part.settings)
    given = answers(root, part.settings) if answers is not None and settings.given else None
    for group in tables.read(context.one("answers")):
        if len(group.completions) > 1:
            raise UserError(f"next_turn: question {group.id!r} has {len(group.completions)} answers, expected one; "
                            "sample one with sampling=single")
        if not group.completions:
            context.report.drop("no first answer")
        elif group.id not in turns:
            context.report.drop("no second turn")
        elif given is not None and group.id not in given:
            context.report.drop("no second answer")
        else:
            said = Message("assistant", group.completions[0].text), Message("user", turns[group.id])
            answers_to_it = () if given is None else (Completion(given[group.id]),)
            yield replace(group, messages=(*group.messages, *said), completions=answers_to_it, prompt_ids=())


STAGE = Stage(Settings, run, version=2, inputs={"answers": "one", "model": "one"}, seeded=False, runtime=Runtime,
              files=files)
