"""Given pairs in three tables: trained/, held_out/ (no training sees them), and seen/, as many of the trained prompts.

By prompt, and by its hash: the same ones with every seed, wherever their rows stand.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.config import setting
from pipeline.errors import UserError
from pipeline.records import Group
from pipeline.stage import Context, Stage, told


@dataclass(frozen=True)
class Settings:
    prompts: int = setting(200, low=1)  # held out; with all of their pairs


def run(context: Context) -> None:
    """Raises UserError where fewer than three times as many prompts are there."""
    from pipeline import tables

    table, number = context.one("groups"), context.settings.prompts
    order = sorted({_mark(group) for group in tables.read(table)})
    if len(order) < 3 * number:
        raise UserError(f"hold_out.prompts: {number} of {len(order)} prompts with preferences, expected a third at "
                        f"most; set stage.hold_out.settings.prompts={max(1, len(order) // 3)}, or give more pairs")
    held_out, seen = set(order[:number]), set(order[number : 2 * number])

    def rows() -> Iterator[tuple[str, Group]]:
        for group in tables.read(table):
            mark = _mark(group)
            yield ("held_out" if mark in held_out else "trained"), group
            if mark in seen:
                yield "seen", group

    tables.write_several(context.out, ("trained", "seen", "held_out"), rows())
    context.report.count(**{name: tables.count(context.out / name) for name in ("trained", "seen", "held_out")})


def _mark(group: Group) -> str:
    return hashlib.sha256(repr(group.prompt_ids).encode()).hexdigest()


STAGE = Stage(Settings, run, version=1, inputs={"groups": "one"}, seeded=False,
              says=told("{trained:,.0f} pairs to train on", "{held_out:,.0f} held out"))
