"""Score every completion of a table with a reward model, a rule, a judge or the policy itself. Drops nothing.

`policy` and `reference` are models for scorers that need them (the implicit reward), `logps` log-probs for one that
needs no model then. Writes scores/, a side table (pipeline.columns) with the parts of its input; scorers that ask a
server or check against what came with the prompt also judged/ (pipeline.rewards.judged). A part that exists is done, so
a killed stage goes on with the next one. Several processes share the slices of a table.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Part, load_part, part_problems, setting
from pipeline.errors import UserError, nearest
from pipeline.records import LENGTH, Group
from pipeline.rewards import judged, slices
from pipeline.rewards.contract import Desk, Limits, Score, ScoreGroups, Scorer
from pipeline.rewards.ensemble import Ensemble, combined, scales
from pipeline.stage import Context, Kinds, Stage, told
from pipeline.training.settings import TrainRuntime

if TYPE_CHECKING:
    from pipeline.columns import Source

_FEW = 8  # different completions that no reward model gives one score
_SLICE = 512  # groups between two signs of progress


@dataclass(frozen=True)
class Settings:
    """What scores, and under which name."""

    reward: dict[str, Any]
    """The scorer: a part such as {module: pipeline.rewards.model}."""

    name: str = "reward"
    """The score's name in Completion.scores; a score of that name is replaced."""

    also: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Further scorers by the name of their score, to see what the first one does not: {gold: {module: ...}}."""

    ensemble: Ensemble = setting(Ensemble(), added=True)  # noqa: RUF009
    """One more score, made of several of these."""

    def check(self) -> list[tuple[str, str]]:
        problems = [(f"also.{n}", "the first score has this name already") for n in self.also if n == self.name]
        for where, spec in _specs(self).values():
            problems += part_problems(spec, where, Scorer)
        if not problems:
            known = _names(self) - {self.ensemble.name}
            problems += [("ensemble.of", f"no score {name!r}{nearest(name, known)}") for name in self.ensemble.of
                         if name not in known]
        return problems


@dataclass(frozen=True)
class Runtime:
    """How the scorers run: models on this machine, and judges."""

    models: TrainRuntime = field(default_factory=TrainRuntime)  # how scoring models run here, and in how many processes
    judge: Limits = field(default_factory=Limits)  # how servers are asked
    answers: str = "judge"  # folder in which a judge's answers are kept for all runs

    @property
    def torchrun(self) -> list[str]:
        """Arguments that start the processes which share a table; empty where one is enough."""
        return self.models.torchrun


def wanted(settings: Settings) -> set[str]:
    """A rule, or a model given by path, has no use for a trained one."""
    parts = _parts(settings).values()
    return set(required(settings)) | ({"model"} if any(p.of(p.plugin.needs_model) for p in parts) else set())


def required(settings: Settings) -> dict[str, str]:
    needed = {name for part in _parts(settings).values() for name in part.of(part.plugin.needs)}
    return {name: f"a score is computed with {name}, a model or a side table" for name in sorted(needed)}


def check(settings: Settings, runtime: Runtime) -> list[str]:
    where = {name: "scorer" if name == settings.name else place for name, (place, _) in _specs(settings).items()}
    return [f"reward.{where[name]}.{key}: {problem}" for name, part in _parts(settings).items()
            for key, problem in part.plugin.check(part.settings, runtime.judge)]


def files(settings: Settings, runtime: Runtime) -> list[Path]:
    return list(dict.fromkeys(path for part in _parts(settings).values() for path in part.plugin.files(part.settings)))


def kinds(settings: Settings, given: Kinds) -> Kinds:
    """The groups it is given, and the scores they then have."""
    return given | Kinds(scores=frozenset(_names(settings)))


def _names(settings: Settings) -> set[str]:
    """Of all scores that are written."""
    made = {name + behind for name, part in _parts(settings).items() for behind in part.of(part.plugin.suffixes)}
    return made | ({settings.ensemble.name} if settings.ensemble.of else set())


def run(context: Context) -> None:
    from pipeline import columns, tables

    (source,), target = columns.sources(context), context.out / "scores"
    total, done = tables.count(source.path), 0
    scorers: dict[str, ScoreGroups] = {}
    desks = {name: Desk(context.runtime.judge, Path(context.runtime.answers), context.report.run)
             for name, made in _parts(context.settings).items() if made.plugin.desk}
    shared = frozenset(_parts(context.settings)) - desks.keys() if context.runtime.torchrun else frozenset[str]()
    if context.runtime.torchrun and not _share(context, source, target, desks.keys()):
        return
    for part, of_part in _tables(context, source):
        if not (target / part.name).exists():
            scorers = scorers or _scorers(context, desks, shared)
            context.report.progress(done, total, "prompts")
            scored: list[Group] = []
            for start in range(0, len(of_part), _SLICE):
                made = slices.read(slices.place(context.work, part, start), _parts(context.settings), scorers
                                   ) if shared else scorers
                scored += score_groups(of_part[start : start + _SLICE], made)
                context.report.progress(done + len(scored), total, "prompts")
            if desks:
                judged.write(context.out / "judged" / f"{part.stem}.jsonl", desks)
            write(target, part, source.digest, scored, context.settings)
            context.report.metric(done + len(scored), **summary(scored, context.settings.name))
        done += len(of_part)
    context.report.progress(total, total, "prompts")
    if context.settings.ensemble.of:
        combine(source, target, context.settings)
    numbers, missing = judged.counted(context.out / "judged")
    context.report.count(**numbers)
    for why, times in missing.items():
        context.report.drop(why, times)
    check_scores(columns.with_scores(source, [target]), context.settings, missing)
    means = summary(columns.with_scores(source, [target]), context.settings.name)
    for name in [*context.settings.also, *([context.settings.ensemble.name] if context.settings.ensemble.of else [])]:
        further = summary(columns.with_scores(source, [target]), name)
        means |= {f"{name}_{mean.removeprefix('score_')}": further[mean] for mean in ("score_mean", "best_of_n_mean")
                    if mean in further}
    context.report.count(**means)


def _tables(context: Context, source: "Source") -> Iterator[tuple[Path, list[Group]]]:
    """The parts of the input and their groups, with log-probs where they are given."""
    from pipeline import columns, tables

    logps = context.inputs.get("logps", ())
    groups = columns.with_logps(source, logps) if logps else tables.read(source.path)
    for part in tables.parts(source.path):
        yield part, list(itertools.islice(groups, tables.rows(part)))


def _share(context: Context, source: "Source", target: Path, desks: AbstractSet[str]) -> bool:
    """Score every so many-th slice of the parts that are not there yet, with the scorers that need no desk, into files
    that the first process puts together: slices are the same however many share them, and so are scores. Returns, once
    all are done, whether this is the first process.
    """
    from pipeline.lm import folders
    from pipeline.training import distribute

    world, device = distribute.join(context.runtime.models, folders.prepare_machine(context.runtime.models))
    own, scorers, number = replace(context.runtime.models, device=str(device)), dict[str, ScoreGroups](), 0
    for part, of_part in _tables(context, source):
        for start in range(0, len(of_part) if not (target / part.name).exists() else 0, _SLICE):
            number += 1
            place = slices.place(context.work, part, start)
            if number % world.size == world.rank and not slices.whole(place):
                scorers = scorers or _scorers(replace(context, runtime=replace(context.runtime, models=own)), {}, desks)
                slices.write(place, of_part[start : start + _SLICE], scorers)
    world.wait()
    return world.first


def write(target: Path, part: Path, digest: str, groups: Sequence[Group], settings: Settings) -> None:
    """Write the scores these settings give to the groups of a part as the part of that name."""
    from pipeline import columns

    names = _names(settings)
    columns.write_part(target, int(part.stem.removeprefix("part-")), (
        (digest, g.id, [{name: value for name, value in c.scores.items() if name in names} for c in g.completions])
        for g in groups))


def combine(source: "Source", target: Path, settings: Settings) -> None:
    """Put the ensemble's score into every part, made of the scores that stand there: done again it gives the same."""
    from pipeline import columns, tables

    scale = scales((c.scores for group in columns.with_scores(source, [target]) for c in group.completions),
                   settings.ensemble)
    groups = columns.with_scores(source, [target])
    for part in tables.parts(source.path):
        of_part = itertools.islice(groups, tables.rows(part))
        write(target, part, source.digest, [replace(group, completions=tuple(
            replace(c, scores={**c.scores, settings.ensemble.name: combined(c.scores, settings.ensemble, scale)})
            for c in group.completions)) for group in of_part], settings)


def score_groups(groups: Sequence[Group], scorers: dict[str, ScoreGroups]) -> list[Group]:
    """The groups with every completion's score of each scorer added, by name."""
    for name, scorer in scorers.items():
        groups = [_with_scores(group, name, found) for group, found in zip(groups, scorer(groups), strict=True)]
    return list(groups)


def _with_scores(group: Group, name: str, values: Sequence[Score]) -> Group:
    scored = zip(group.completions, values, strict=True)
    return replace(group, completions=tuple(replace(c, scores={**c.scores, **_named(name, v)}) for c, v in scored))


def _named(name: str, value: Score) -> dict[str, float]:
    return {name + k: v for k, v in value.items()} if isinstance(value, Mapping) else {name: value}


def summary(groups: Iterable[Group], name: str) -> dict[str, float]:
    """Numbers of a scored table: means over completions of the score, over prompts of the best one (best of N), counts.

    Scores that are not finite are counted as `unscored` and left out of the means. A mean over nothing is not there.
    """
    prompts = completions = cut = tokens = 0
    scores: list[float] = []
    best: list[float] = []
    for group in groups:
        values = [c.scores[name] for c in group.completions]
        finite = [v for v in values if math.isfinite(v)]
        scores += finite
        best += [max(finite)] if finite else []
        prompts, completions = prompts + 1, completions + len(values)
        cut += sum(c.finish_reason == LENGTH for c in group.completions)
        tokens += sum(len(c.token_ids) for c in group.completions)
    means = {"score_mean": (sum(scores), len(scores)), "best_of_n_mean": (sum(best), len(best)),
             "length_mean": (tokens, completions), "truncated_share": (cut, completions)}
    return {"prompts": prompts, "completions": completions, "unscored": completions - len(scores),
            **{mean: total / number for mean, (total, number) in means.items() if number}}


def check_scores(groups: Iterable[Group], settings: Settings, missing: Mapping[str, int] | None = None) -> None:
    """Raises UserError for a score that tells nothing: finite for no completion, or from a model that gives all the
    same, however different they are. missing: why judges gave no verdict, and how often.
    """
    seen: dict[str, set[float | None]] = {name: set() for name in _parts(settings)}  # None: not finite
    number, texts = 0, set[tuple[str, str]]()
    for group in groups:
        for completion in group.completions:
            number += 1
            texts |= {(group.id, completion.text)} if len(texts) < _FEW else set()
            for name, values in seen.items():
                score = completion.scores[name]
                values |= {score if math.isfinite(score) else None} if len(values) < _FEW else set()
    problems = []
    for name, values in seen.items():
        where, spec = _specs(settings)[name]
        reasons = [(n, why) for why, n in (missing or {}).items() if why.startswith(f"{name}: ")]
        if values == {None} and reasons:
            problems.append(f"{where}: none of the {number} completions has a score {name!r}; most often "
                            f"{max(reasons)[1].removeprefix(f'{name}: ')} ({max(reasons)[0]} times)")
        elif values == {None}:
            problems.append(f"{where}: the score {name!r} of all {number} completions is not finite; {spec['module']} "
                            "gives nothing to compare: check its model's weights")
        elif len(texts) == _FEW and len(values) == 1 and "path" in spec:
            problems.append(f"{where}: the score {name!r} of all {number} completions is {values.pop()}; a reward "
                            "model that tells no two apart teaches nothing: check its head's weights, or train it anew")
    if problems:
        raise UserError(*problems)


def _specs(settings: Settings) -> dict[str, tuple[str, dict[str, Any]]]:
    """Score name -> (where the part stands in the settings, the part)."""
    further = {name: (f"also.{name}", spec) for name, spec in settings.also.items()}
    return {settings.name: ("reward", settings.reward), **further}


def _parts(settings: Settings) -> dict[str, Part[Scorer]]:
    return {name: load_part(spec, where, Scorer) for name, (where, spec) in _specs(settings).items()}


def _scorers(context: Context, desks: Mapping[str, Desk], without: AbstractSet[str]) -> dict[str, ScoreGroups]:
    return {name: part.plugin.scorer(part.settings, model=context.optional("model"), runtime=context.runtime.models,
                                     **{needed: context.optional(needed) for needed in part.of(part.plugin.needs)},
                                     **({"desk": desks[name]} if name in desks else {}))
            for name, part in _parts(context.settings).items() if name not in without}


def devices(settings: Settings, runtime: Runtime) -> int:
    """One for each process, where any of the scorers holds a model."""
    return runtime.models.processes if any(part.plugin.holds_model for part in _parts(settings).values()) else 0


STAGE = Stage(
    Settings, run, version=2,
    inputs={"groups": "one", "model": "optional", "policy": "optional", "reference": "optional", "logps": "optional"},
    seeded=False, runtime=Runtime, distributed=True, devices=devices, files=files, check=check,
    required=required, wanted=wanted, kinds=kinds, says=told("mean {score_mean:.3f}", "best of N {best_of_n_mean:.3f}"))
