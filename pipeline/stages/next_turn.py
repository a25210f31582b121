"""The second turn of a two-turn benchmark: the first question, the answer to it, the next question. Writes groups/.

The conversation is rendered anew with the policy's chat template, as a chat server would. A question whose first turn
has no answer, which has no second turn, or which has become too long is counted and left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.build import load_part, part_problems, setting
from pipeline.records import Group, Message, UserError
from pipeline.stage import Context

VERSION = 1
INPUTS = {"answers": "one", "model": "one"}
SEEDED = False


@dataclass(frozen=True)
class Settings:
    """`format` is a data format with `follow_ups(root, settings)`."""

    format: dict[str, Any]
    max_prompt_tokens: int = setting(512, low=1)

    def check(self) -> list[tuple[str, str]]:
        problems = part_problems(self.format, "format")
        if not problems and not hasattr(load_part(self.format, "format").module, "follow_ups"):
            problems.append(("format.module", f"{self.format['module']} has no second turns; use data=mt_bench"))
        return problems


@dataclass(frozen=True)
class Runtime:
    """Where the questions are."""

    root: str | None = None


def files(settings: Settings, runtime: Runtime) -> list[Path]:
    """The question files."""
    if runtime.root is None:
        raise UserError("data.root: not set, expected the folder with the questions")
    part = load_part(settings.format, "data.format")
    found: list[Path] = part.module.files(Path(runtime.root).expanduser(), part.settings)
    return found


def run(context: Context) -> None:
    from pipeline import tables
    from pipeline.training import encode, export

    part = load_part(context.settings.format, "data.format")
    turns = part.module.follow_ups(Path(context.runtime.root).expanduser(), part.settings)
    asked = []
    for group in tables.read(context.one("answers")):
        if len(group.completions) > 1:
            raise UserError(f"next_turn: question {group.id!r} has {len(group.completions)} answers, expected one; "
                            "sample one with sampling=single")
        reason = "" if group.completions else "no first answer"
        reason = reason or ("" if group.id in turns else "no second turn")
        if reason:
            context.report.drop(reason)
        else:
            asked.append(with_turn(group, turns[group.id]))
    export.quiet()
    model = context.one("model")
    encoded = encode.Encoder(export.load_tokenizer(model), export.stop_ids(model)).encode(asked)
    kept = [group for group in encoded if len(group.prompt_ids) <= context.settings.max_prompt_tokens]
    context.report.drop("too long", len(encoded) - len(kept))
    context.report.count(prompts=tables.write(context.out / "groups", kept))


def with_turn(group: Group, text: str) -> Group:
    """The conversation with its answer and the next question, yet without ids."""
    answer = Message("assistant", group.completions[0].text)
    return replace(group, messages=(*group.messages, answer, Message("user", text)), completions=(), prompt_ids=())
