"""Scored samples -> preference groups: which completions of a prompt are compared. Writes groups/.

A prompt the selection cannot use is left out and counted by reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.build import load_part, part_problems
from pipeline.records import LENGTH, Group, UserError
from pipeline.stage import Context, NoRuntime

VERSION = 1
INPUTS = {"groups": "one"}
SEEDED = False
Runtime = NoRuntime


@dataclass(frozen=True)
class Settings:
    """How groups are built."""

    selection: dict[str, Any]
    """The selection: a part such as {module: pipeline.selection.best_worst}."""

    def check(self) -> list[tuple[str, str]]:
        return part_problems(self.selection, "selection")


@dataclass
class Tally:
    """Running sums over the kept groups. The rejected side of a group is the mean of its completions but the first."""

    score: str
    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, group: Group) -> None:
        chosen, rest = group.completions[0], group.completions[1:]
        rejected_score = sum(c.scores[self.score] for c in rest) / len(rest)
        self.kept += 1
        for name, value in (
            ("margin_mean", chosen.scores[self.score] - rejected_score),
            ("chosen_score_mean", chosen.scores[self.score]),
            ("rejected_score_mean", rejected_score),
            ("chosen_length_mean", len(chosen.token_ids)),
            ("rejected_length_mean", sum(len(c.token_ids) for c in rest) / len(rest)),
            ("chosen_truncated_share", chosen.finish_reason == LENGTH),
            ("candidates_mean", len(rest)),
        ):
            self.sums[name] = self.sums.get(name, 0.0) + value

    def numbers(self) -> dict[str, float]:
        return {"read": self.read, "kept": self.kept, **{n: s / self.kept for n, s in self.sums.items()}}


def run(context: Context) -> None:
    from pipeline import tables

    part = load_part(context.settings.selection, "selection")
    source = context.one("groups")
    total = tables.count(source)
    tally = Tally(part.settings.score)

    def progressing(groups: Iterable[Group]) -> Iterator[Group]:
        for group in groups:
            if tally.read % 1000 == 0:
                context.report.progress(tally.read, total, "prompts")
            yield group

    tables.write(context.out / "groups", selected(progressing(tables.read(source)), part, tally))
    for reason, number in sorted(tally.dropped.items()):
        context.report.drop(reason, number)
    if not tally.kept:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(tally.dropped.items())) or "the table is empty"
        raise UserError(
            f"build_groups: none of the {tally.read} prompts gives a group ({reasons}). Take more samples per prompt, "
            "a higher sampling temperature, or another reward"
        )
    context.report.progress(total, total, "prompts")
    context.report.count(**tally.numbers())
    context.report.metric(tally.read, **tally.numbers())


def selected(groups: Iterable[Group], part: Any, tally: Tally) -> Iterator[Group]:
    """The groups the selection makes, in the order of the prompts; `tally` counts on the way."""
    for group in groups:
        tally.read += 1
        made, reason = part.module.select(group, part.settings)
        if made is None:
            tally.dropped[reason] = tally.dropped.get(reason, 0) + 1
            continue
        tally.add(made)
        yield made
