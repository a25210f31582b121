"""Score every completion of a table with a reward model, a rule, a judge or the policy itself. Drops nothing.

`policy` and `reference` are models for scorers that need them (the implicit reward), `logps` log-probs for one that
needs no model then. Writes scores/, a side table (pipeline.columns) with the parts of its input. A part that exists is
done, so a killed stage goes on with the next one.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.config import Part, load_part, part_problems
from pipeline.errors import UserError
from pipeline.records import LENGTH, Group
from pipeline.rewards.contract import Score, ScoreGroups, Scorer
from pipeline.stage import Context, Kinds, Stage, told
from pipeline.training.settings import TrainRuntime

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

    def check(self) -> list[tuple[str, str]]:
        problems = [(f"also.{n}", "the first score has this name already") for n in self.also if n == self.name]
        for where, spec in _specs(self).values():
            problems += part_problems(spec, where, Scorer)
        return problems


def wanted(settings: Settings) -> set[str]:
    """A rule, or a model given by path, has no use for a trained one."""
    parts = _parts(settings).values()
    return set(required(settings)) | ({"model"} if any(p.of(p.plugin.needs_model) for p in parts) else set())


def required(settings: Settings) -> dict[str, str]:
    needed = {name for part in _parts(settings).values() for name in part.of(part.plugin.needs)}
    return {name: f"a score is computed with {name}, a model or a side table" for name in sorted(needed)}


def files(settings: Settings, runtime: TrainRuntime) -> list[Path]:
    return list(dict.fromkeys(path for part in _parts(settings).values() for path in part.plugin.files(part.settings)))


def kinds(settings: Settings, given: Kinds) -> Kinds:
    """The groups it is given, and the scores they then have."""
    made = {name + behind for name, part in _parts(settings).items() for behind in part.of(part.plugin.suffixes)}
    return given | Kinds(scores=frozenset(made))


def run(context: Context) -> None:
    from pipeline import columns, tables

    (source,), target = columns.sources(context), context.out / "scores"
    total, done = tables.count(source.path), 0
    scorers: dict[str, ScoreGroups] = {}
    logps = context.inputs.get("logps", ())
    groups = columns.with_logps(source, logps) if logps else tables.read(source.path)
    for part in tables.parts(source.path):
        of_part = list(itertools.islice(groups, tables.rows(part)))
        if not (target / part.name).exists():
            scorers = scorers or _scorers(context)
            context.report.progress(done, total, "prompts")
            scored: list[Group] = []
            for start in range(0, len(of_part), _SLICE):
                scored += score_groups(of_part[start : start + _SLICE], scorers)
                context.report.progress(done + len(scored), total, "prompts")
            write(target, part, source.digest, scored, context.settings)
            context.report.metric(done + len(scored), **summary(scored, context.settings.name))
        done += len(of_part)
    context.report.progress(total, total, "prompts")
    check_scores(columns.with_scores(source, [target]), context.settings)
    numbers = summary(columns.with_scores(source, [target]), context.settings.name)
    for name in context.settings.also:
        further = summary(columns.with_scores(source, [target]), name)
        numbers |= {f"{name}_{mean.removeprefix('score_')}": further[mean] for mean in ("score_mean", "best_of_n_mean")
                    if mean in further}
    context.report.count(**numbers)


def write(target: Path, part: Path, digest: str, groups: Sequence[Group], settings: Settings) -> None:
    """Write the scores these settings give to the groups of a part as the part of that name."""
    from pipeline import columns

    names = {name + behind for name, made in _parts(settings).items() for behind in made.of(made.plugin.suffixes)}
    columns.write_part(target, int(part.stem.removeprefix("part-")), (
        (digest, g.id, [{name: value for name, value in c.scores.items() if name in names} for c in g.completions])
        for g in groups))


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


def check_scores(groups: Iterable[Group], settings: Settings) -> None:
    """Raises UserError for a score that tells nothing: finite for no completion, or from a model that gives all the
    same, however different they are.
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
        if values == {None}:
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


def _scorers(context: Context) -> dict[str, ScoreGroups]:
    return {name: part.plugin.scorer(part.settings, model=context.optional("model"), runtime=context.runtime,
                                     **{needed: context.optional(needed) for needed in part.of(part.plugin.needs)})
            for name, part in _parts(context.settings).items()}


STAGE = Stage(
    Settings, run, version=2,
    inputs={"groups": "one", "model": "optional", "policy": "optional", "reference": "optional", "logps": "optional"},
    seeded=False, runtime=TrainRuntime, files=files, required=required, wanted=wanted, kinds=kinds,
    says=told("mean {score_mean:.3f}", "best of N {best_of_n_mean:.3f}"))
