"""Scored samples -> preference groups: which completions of a prompt are compared. Writes groups/.

Filters, then the selection rule, then filters on what it made (pipeline.selection.filters). What is left out is counted
by reason: prompts under the reason itself; of the prompts that are kept, single samples as completion_<reason> and
whole groups as group_<reason>. Scores are read, never computed: another rule or another filter re-pairs the same table.
Where the rule writes new prompts, they are tokenised with the template of `model`. `beside`: samples of another model
for the same prompts in the same order, for rules that compare the two. `scores` and `beside_scores` are their scores.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pipeline.config import Part, load_part, part_problems
from pipeline.engines.engine import text_decoder
from pipeline.errors import UserError
from pipeline.records import LENGTH, Group, Message
from pipeline.selection.candidates import TOO_FEW
from pipeline.selection.contract import LISTS, PAIRS, Rule
from pipeline.selection.filters import Correction, Filters, clean, compared, length_of, lines
from pipeline.stage import Context, Kinds, Stage, told

_BATCH = 512  # groups tokenised at once


@dataclass(frozen=True)
class Settings:
    """How groups are built."""

    selection: dict[str, Any]
    """The selection: a part such as {module: pipeline.selection.best_worst}."""

    filters: Filters = field(default_factory=Filters)
    """What may be compared at all."""

    def check(self) -> list[tuple[str, str]]:
        return part_problems(self.selection, "selection", Rule)


def seeded(settings: Settings) -> bool:
    """Rules that draw nothing make the same groups with every seed, so their groups are shared by all seeds."""
    part = _rule(settings)
    return part.of(part.plugin.seeded)


def required(settings: Settings) -> dict[str, str]:
    part = _rule(settings)
    writes = part.plugin.rewrites or part.plugin.prompts is not None
    found = {"model": "the selection writes new prompts"} if writes else {}
    found |= {"model": "the selection writes new ids"} if part.of(part.plugin.decodes) else {}
    beside = {"beside": "the selection compares with samples of another model"}
    return found | (beside if part.of(part.plugin.beside) else {})


def wanted(settings: Settings) -> set[str]:
    needed = required(settings)
    return {"scores", *needed, *(["beside_scores"] if "beside" in needed else [])}


def wants(settings: Settings) -> dict[str, str]:
    """Lists, for a rule of more than two answers, where it selects from the data set's preferences."""
    part = _rule(settings)
    fewest = part.of(part.plugin.samples)
    way = (f"{part.name.rpartition('.')[2]} takes lists of {fewest} or more; give ranked lists, or a recipe that "
           "samples its own (recipe=mcpo_instruct)")
    return {"lists": way} if fewest > 2 else {}


def kinds(settings: Settings, given: Kinds) -> Kinds:
    """The make-up, and the scores on it."""
    part = _rule(settings)
    return Kinds(frozenset({part.of(part.plugin.gives)}), given.scores | set(part.plugin.stores))


def misfit(settings: Settings, given: Kinds) -> str | None:
    """A score the rule reads that no stage before gives. A data set may bring its own: known once it is read."""
    part = _rule(settings)
    if "data" in given.layouts or not given.scores:
        return None
    wanted = (*part.of(part.plugin.reads), *part.of(part.plugin.asks))
    missing = [name for name in wanted if name not in given.scores]
    if not missing:
        return None
    return (f"{part.name} reads the score {missing[0]!r}, which no stage before it gives (scores there: "
            f"{', '.join(sorted(given.scores))}); choose a reward that gives it, add it with reward.also, or name "
            "another one in selection (docs/selection.md, Scores that rules need)")


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
        for name, value in (("margin_mean", chosen.scores[self.score] - rejected_score),
                            ("chosen_score_mean", chosen.scores[self.score]), ("rejected_score_mean", rejected_score),
                            ("chosen_length_mean", length_of(chosen)),
                            ("rejected_length_mean", sum(map(length_of, rest)) / len(rest)),
                            ("chosen_truncated_share", chosen.finish_reason == LENGTH), ("candidates_mean", len(rest))):
            self.sums[name] += value  # type: ignore[assignment]

    def numbers(self) -> dict[str, float]:
        means = {name: total / self.kept for name, total in self.sums.items()}
        return {"read": self.read, "used": self.used, "kept": self.kept, **means}


def run(context: Context) -> None:
    from pipeline import columns, tables

    settings, part = context.settings, _rule(context.settings)
    read = partial(columns.scored, context)
    filters = replace(settings.filters, duplicates="keep") if part.plugin.draws else settings.filters
    correction = _correction(filters, part, read)
    select = _select(part, correction, read, context.seed)
    other = partial(columns.scored, context, "beside", "beside_scores") if part.of(part.plugin.beside) else None
    total, tally = tables.count(context.one("groups")), Tally(part.of(part.plugin.ranks))
    whole = part.of(part.plugin.gives) not in (PAIRS, LISTS)

    def made() -> Iterator[Group]:
        for group, *beside in side_by_side(read, other):
            if tally.read % 1000 == 0:
                context.report.progress(tally.read, total, "prompts")
            yield from groups_of(group, correction, select, tally, whole, *beside)

    tables.write(context.out / "groups", _with_ids(made(), part, context))
    for reason, number in sorted(tally.dropped.items()):
        context.report.drop(reason, number)
    if not tally.kept:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(tally.dropped.items())) or "the table is empty"
        raise UserError(f"build_groups: none of the {tally.read} prompts gives a group ({reasons}). Take more samples "
                        "per prompt, a higher sampling temperature, another reward, or weaker filters")
    for name, line in correction.lines.items():
        context.report.count(**{f"length_slope_{name}": line.slope})
    context.report.progress(total, total, "prompts")
    context.report.count(**tally.numbers())
    context.report.metric(tally.read, **tally.numbers())


Select = Callable[..., tuple[list[Group], str]]
Read = Callable[[], Iterable[Group]]  # a table from its beginning
Prompts = Callable[[Group], tuple[tuple[Message, ...] | None, ...]]


def side_by_side(read: Read, other: Read | None) -> Iterator[tuple[Group, ...]]:
    """The groups of a table, each with the second table's group at that row. Raises UserError if the prompts differ."""
    if other is None:
        yield from ((group,) for group in read())
        return
    for ours, theirs in zip_longest(read(), other()):
        if ours is None or theirs is None or ours.id != theirs.id:
            found = [group.id if group else "nothing" for group in (ours, theirs)]
            raise UserError(f"build_groups: the second table has different prompts: {found[0]!r} and {found[1]!r} at "
                            "the same row; sample both tables from the same prompts")
        yield ours, theirs


def groups_of(
    group: Group, correction: Correction, select: Select, tally: Tally, whole: bool = False, *beside: Group
) -> list[Group]:
    """The groups one prompt gives, counted in `tally`. `whole`: a make-up of its own, kept or left out by its pair.
    beside: the prompt's samples of another model, for a rule that takes them.
    """
    filters = correction.filters
    cleaned, samples, reason = clean(group, filters, correction.scores)
    if len(cleaned.completions) < 2:
        tally.prompt([], reason or TOO_FEW, samples, {})
        return []
    rivals = (correction.apply(clean(other, filters, correction.scores)[0]) for other in beside)
    made, reason = select(correction.apply(cleaned), *rivals)
    found, pairs, left_out = list[Group](), list[Group](), Counter[str]()
    for one in made:
        judged = replace(one, completions=one.completions[:2]) if whole else one
        kept, gone, why = compared(judged, filters, tally.score)
        reason = reason or why
        if kept is None:
            left_out[why] += 1
        else:
            found.append(one if whole else kept)
            pairs.append(kept)
            samples = Counter(samples) + Counter(gone)
    tally.prompt(pairs, reason, samples, left_out)
    return found


def _with_ids(groups: Iterable[Group], part: Part[Rule], context: Context) -> Iterable[Group]:
    """The groups with ids of what the rule wrote anew."""
    if part.plugin.rewrites:
        return tokenised(groups, context.one("model"))
    if part.of(part.plugin.decodes):
        decode = text_decoder(context.one("model"))
        return (replace(group, completions=tuple(c if c.text else replace(c, text=decode(c.token_ids))
                                                 for c in group.completions)) for group in groups)
    prompts = part.plugin.prompts
    if prompts is None:
        return groups
    return prompted(groups, lambda group: prompts(group, part.settings), context.one("model"))


def tokenised(groups: Iterable[Group], model: Path) -> Iterator[Group]:
    """The groups with ids of their texts, by the tokenizer and chat template of `model`."""
    from pipeline import tables
    from pipeline.lm.folders import policy_encoder

    encoder = policy_encoder(model)
    for batch in tables.batches(groups, _BATCH):
        yield from encoder.encode(batch)


def prompted(groups: Iterable[Group], prompts: Prompts, model: Path) -> Iterator[Group]:
    """The groups with ids of the prompts that are a completion's own; the completions keep the ids they have."""
    from pipeline import tables
    from pipeline.lm.folders import policy_encoder

    encoder = policy_encoder(model)
    for batch in tables.batches(groups, _BATCH):
        asked = [prompts(group) for group in batch]
        bare = [Group(group.id, m, template=group.template) for group, own in zip(batch, asked, strict=True)
                for m in own if m]
        ids = iter(encoder.encode(bare))
        for group, own in zip(batch, asked, strict=True):
            given = zip(group.completions, own, strict=True)
            yield replace(group, completions=tuple(
                replace(c, prompt_ids=next(ids).prompt_ids) if messages else c for c, messages in given))


def _rule(settings: Settings) -> Part[Rule]:
    return load_part(settings.selection, "selection", Rule)


def _correction(filters: Filters, part: Part[Rule], read: Read) -> Correction:
    """The filters with what they must know of the whole table."""
    scores = part.of(part.plugin.reads)
    cleaned = (clean(group, filters, scores)[0] for group in read())
    return Correction(filters, scores, lines(cleaned, filters, scores))


def _select(part: Part[Rule], correction: Correction, read: Read, seed: int) -> Select:
    """The rule as a function of the group alone, with what it must know of the whole table."""
    def usable() -> Iterable[Group]:
        for group in read():
            cleaned, _, _ = clean(group, correction.filters, correction.scores)
            if len(cleaned.completions) >= 2:
                yield correction.apply(cleaned)

    survey = part.plugin.survey
    found = () if survey is None else (survey(usable(), part.settings, seed),)
    return lambda group, *beside: part.plugin.select(group, part.settings, seed, *found, *beside)


STAGE = Stage(
    Settings, run, version=5,
    inputs={"groups": "one", "scores": "optional", "beside": "optional", "beside_scores": "optional",
            "model": "optional"},
    seeded=seeded, required=required, wanted=wanted, kinds=kinds, misfit=misfit, wants=wants,
    says=told("{kept:,.0f} groups of {read:,.0f} prompts", "margin {margin_mean:.3f}"))
