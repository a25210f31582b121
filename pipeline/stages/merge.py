"""Several tables of groups -> one, in the order of the inputs. Writes groups/.

Every group keeps its data set, its iteration and its weight (times its input's factor, where factors are given), so a
row can be traced to where it came from. Nothing is dropped: an id that occurs twice is an error, since it would be
trained on twice and have its reference log-probs looked up wrongly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import setting
from pipeline.errors import UserError
from pipeline.records import Group
from pipeline.stage import Context, Kinds, Stage


@dataclass(frozen=True)
class Settings:
    """How the inputs weigh."""

    weights: tuple[float, ...] = setting((), low=0.0)
    """Factor on the weight of each input's groups, one per input in recipe order; empty: leave the weights."""


def kinds(settings: Settings, given: Kinds) -> Kinds:
    """The groups it is given."""
    return given


def run(context: Context) -> None:
    from pipeline import tables

    inputs = context.inputs["groups"]
    weights = context.settings.weights or (1.0,) * len(inputs)
    if len(weights) != len(inputs):
        raise UserError(
            f"train.merge_weights: {len(weights)} numbers for {len(inputs)} inputs, expected one for each, "
            "or an empty list"
        )
    total = tables.write(context.out / "groups", merged(inputs, weights))
    for index, table in enumerate(inputs):
        context.report.count(**{f"from_input_{index}": tables.count(table)})
    context.report.count(groups=total)
    context.report.progress(total, total, "groups")


def merged(inputs: Sequence[Path], weights: Sequence[float]) -> Iterator[Group]:
    """The groups of all tables, each table's weights multiplied by its factor.

    Raises UserError for an id that occurs twice, and for tables of which only some are tokenised.
    """
    from pipeline import tables

    origin: dict[str, int] = {}
    tokenised: bool | None = None
    for index, (table, weight) in enumerate(zip(inputs, weights, strict=True)):
        for group in tables.read(table):
            if group.id in origin:
                raise UserError(
                    f"merge: id {group.id!r} occurs in input {origin[group.id]} and in input {index} (from 0, in "
                    "recipe order); prompts of different iterations must be disjoint, a table merged only once"
                )
            origin[group.id] = index
            if tokenised is not None and tokenised != bool(group.prompt_ids):
                raise UserError(f"merge: {group.id!r} of input {index} is tokenised and others are not, or the reverse")
            tokenised = bool(group.prompt_ids)
            yield replace(group, weight=group.weight * weight)


STAGE = Stage(Settings, run, version=1, inputs={"groups": "many"}, seeded=False, kinds=kinds)
