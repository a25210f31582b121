"""Scored samples -> preference groups: which completions of a prompt are compared. Writes groups/.

Filters, then the selection rule, then filters on what it made (pipeline.selection.filters). What is left out is counted
by reason: prompts under the reason itself; of the prompts that are kept, single samples as completion_<reason> and
whole groups as group_<reason>. Scores are read, never computed: another rule or another filter re-pairs the same table.
Where the rule writes new prompts, they are tokenised with the template of `model`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.build import Part, declared, load_part, part_problems
from pipeline.records import LENGTH, Group, UserError
from pipeline.selection.candidates import TOO_FEW
from pipeline.selection.filters import Correction, Filters, clean, compared, length_of, lines
from pipeline.stage import Context, NoRuntime

VERSION = 2
INPUTS = {"groups": "one", "model": "optional"}
SEEDED = False  # unless the rule draws, see seeded
Runtime = NoRuntime
_BATCH = 512  # groups tokenised at once


@dataclass(frozen=True)
class Settings:
    """How groups are built."""

    selection: dict[str, Any]
    """The selection: a part such as {module: pipeline.selection.best_worst}."""

    filters: Filters = field(default_factory=Filters)
    """What may be compared at all."""

    def check(self) -> list[tuple[str, str]]:
        return part_problems(self.selection, "selection")


def seeded(settings: Settings) -> bool:
    """Rules that draw nothing make the same groups with every seed, so their groups are shared by all seeds."""
    return bool(declared(_rule(settings), "seeded"))


def required(settings: Settings) -> dict[str, str]:
    return {"model": "the selection writes new prompts"} if _rewrites(_rule(settings)) else {}


def wanted(settings: Settings) -> set[str]:
    return set(required(settings))


def kinds(settings: Settings, given: frozenset[str]) -> frozenset[str]:
    return frozenset({str(declared(_rule(settings), "gives"))})


@dataclass
class Tally:
    """Running sums over the kept groups. The rejected side of a group is the mean of its completions but the first."""

    score: str
    read: int = 0
    used: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)

    def prompt(self, made: list[Group], reason: str, samples: dict[str, int], groups: dict[str, int]) -> None:
        """Account for one prompt: the groups it gave, or the reason it gave none."""
        self.read += 1
        if not made:
            self.dropped[reason] += 1
            return
        self.used += 1
        self.dropped.update({f"completion_{why}": number for why, number in samples.items()})
        self.dropped.update({f"group_{why}": number for why, number in groups.items()})
        for group in made:
            self.add(group)

    def add(self, group: Group) -> None:
        chosen, rest = group.completions[0], group.completions[1:]
        rejected_score = sum(c.scores[self.score] for c in rest) / len(rest)
        self.kept += 1
        for name, value in (
            ("margin_mean", chosen.scores[self.score] - rejected_score),
            ("chosen_score_mean", chosen.scores[self.score]),
            ("rejected_score_mean", rejected_score),
            ("chosen_length_mean", length_of(chosen)),
            ("rejected_length_mean", sum(map(length_of, rest)) / len(rest)),
            ("chosen_truncated_share", chosen.finish_reason == LENGTH),
            ("candidates_mean", len(rest)),
        ):
            self.sums[name] += value  # type: ignore[assignment]

    def numbers(self) -> dict[str, float]:
        means = {name: total / self.kept for name, total in self.sums.items()}
        return {"read": self.read, "used": self.used, "kept": self.kept, **means}


def run(context: Context) -> None:
    from pipeline import tables

    settings, source = context.settings, context.one("groups")
    part = _rule(settings)
    correction = _correction(settings.filters, part, source)
    select = _select(part, correction, source, context.seed)
    total, tally = tables.count(source), Tally(_ranks(part))
    whole = declared(part, "gives") not in ("pairs", "lists")

    def made() -> Iterator[Group]:
        for group in tables.read(source):
            if tally.read % 1000 == 0:
                context.report.progress(tally.read, total, "prompts")
            yield from groups_of(group, correction, select, tally, whole)

    tables.write(context.out / "groups", tokenised(made(), context.one("model")) if _rewrites(part) else made())
    for reason, number in sorted(tally.dropped.items()):
        context.report.drop(reason, number)
    if not tally.kept:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(tally.dropped.items())) or "the table is empty"
        raise UserError(
            f"build_groups: none of the {tally.read} prompts gives a group ({reasons}). Take more samples per prompt, "
            "a higher sampling temperature, another reward, or weaker filters"
        )
    for name, line in correction.lines.items():
        context.report.count(**{f"length_slope_{name}": line.slope})
    context.report.progress(total, total, "prompts")
    context.report.count(**tally.numbers())
    context.report.metric(tally.read, **tally.numbers())


Select = Callable[[Group], tuple[list[Group], str]]


def groups_of(
    group: Group, correction: Correction, select: Select, tally: Tally, whole: bool = False
) -> list[Group]:
    """The groups one prompt gives, counted in `tally`. `whole`: a make-up of its own, kept or left out by its pair."""
    filters = correction.filters
    cleaned, samples, reason = clean(group, filters, correction.scores)
    if len(cleaned.completions) < 2:
        tally.prompt([], reason or TOO_FEW, samples, {})
        return []
    made, reason = select(correction.apply(cleaned))
    found, left_out = list[Group](), Counter[str]()
    for one in made:
        judged = replace(one, completions=one.completions[:2]) if whole else one
        kept, gone, why = compared(judged, filters, tally.score)
        reason = reason or why
        if kept is None:
            left_out[why] += 1
        else:
            found.append(one if whole else kept)
            samples = Counter(samples) + Counter(gone)
    tally.prompt(found, reason, samples, left_out)
    return found


def tokenised(groups: Iterable[Group], model: Path) -> Iterator[Group]:
    """The groups with ids of their texts, by the tokenizer and chat template of `model`."""
    from pipeline.training import encode, export
    from pipeline.training.data import chunks

    export.quiet()
    encoder = encode.Encoder(export.load_tokenizer(model), export.stop_ids(model))
    for batch in chunks(groups, _BATCH):
        yield from encoder.encode(batch)


def _rewrites(part: Part) -> bool:
    return bool(getattr(part.module, "REWRITES", False))


def _rule(settings: Settings) -> Part:
    return load_part(settings.selection, "selection")


def _ranks(part: Part) -> str:
    function = getattr(part.module, "ranks", None)
    return str(function(part.settings) if function is not None else part.settings.score)


def _correction(filters: Filters, part: Part, source: Path) -> Correction:
    """The filters with what they must know of the whole table."""
    from pipeline import tables

    function = getattr(part.module, "reads", None)
    scores = tuple(function(part.settings)) if function is not None else (part.settings.score,)
    cleaned = (clean(group, filters, scores)[0] for group in tables.read(source))
    return Correction(filters, scores, lines(cleaned, filters, scores))


def _select(part: Part, correction: Correction, source: Path, seed: int) -> Select:
    """The rule as a function of the group alone, with what it must know of the whole table."""
    from pipeline import tables

    def usable() -> Iterable[Group]:
        for group in tables.read(source):
            cleaned, _, _ = clean(group, correction.filters, correction.scores)
            if len(cleaned.completions) >= 2:
                yield correction.apply(cleaned)

    survey = getattr(part.module, "survey", None)
    found = () if survey is None else (survey(usable(), part.settings, seed),)
    return lambda group: part.module.select(group, part.settings, seed, *found)
