"""Score every completion of a table with a reward model, a rule, a judge or the policy itself. Drops nothing.

`policy` and `reference` are models for scorers that need them (the implicit reward), `logps` log-probs for one that
needs no model then. Writes scores/, a side table (pipeline.columns) with the parts of its input; scorers that ask a
server or check against what came with the prompt also judged/, a line for each question with its outcome, or why an
answer has no score. A part that exists is done, so a killed stage goes on with the next one.
"""

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline import files as whole
from pipeline.config import Part, load_part, part_problems
from pipeline.errors import UserError
from pipeline.records import LENGTH, Group
from pipeline.rewards.contract import Desk, Limits, Score, ScoreGroups, Scorer
from pipeline.stage import Context, Kinds, Stage
from pipeline.training.settings import TrainRuntime

_FEW = 8  # different completions that no reward model gives one score
_ASKED = {"verdict", "outcome", "places"}  # what a judge said of answers; rows of rules have none of them
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


@dataclass(frozen=True)
class Runtime:
    """How the scorers run: models on this machine, and judges."""

    models: TrainRuntime = field(default_factory=TrainRuntime)
    judge: Limits = field(default_factory=Limits)
    answers: str = "judge"  # folder in which a judge's answers are kept for all runs


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
    made = {name + behind for name, part in _parts(settings).items() for behind in part.of(part.plugin.suffixes)}
    return given | Kinds(scores=frozenset(made))


def run(context: Context) -> None:
    from pipeline import columns, tables

    (source,), target = columns.sources(context), context.out / "scores"
    total, done = tables.count(source.path), 0
    scorers: dict[str, ScoreGroups] = {}
    desks = {name: Desk(context.runtime.judge, Path(context.runtime.answers), context.report.run)
             for name, made in _parts(context.settings).items() if made.plugin.desk}
    logps = context.inputs.get("logps", ())
    groups = columns.with_logps(source, logps) if logps else tables.read(source.path)
    for part in tables.parts(source.path):
        of_part = list(itertools.islice(groups, tables.rows(part)))
        if not (target / part.name).exists():
            scorers = scorers or _scorers(context, desks)
            context.report.progress(done, total, "prompts")
            scored: list[Group] = []
            for start in range(0, len(of_part), _SLICE):
                scored += score_groups(of_part[start : start + _SLICE], scorers)
                context.report.progress(done + len(scored), total, "prompts")
            if desks:
                _write_judged(context.out / "judged" / f"{part.stem}.jsonl", desks)
            write(target, part, source.digest, scored, context.settings)
            context.report.metric(done + len(scored), **summary(scored, context.settings.name))
        done += len(of_part)
    context.report.progress(total, total, "prompts")
    missing = count_judged(context)
    check_scores(columns.with_scores(source, [target]), context.settings, missing)
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


def _scorers(context: Context, desks: Mapping[str, Desk]) -> dict[str, ScoreGroups]:
    return {name: part.plugin.scorer(part.settings, model=context.optional("model"), runtime=context.runtime.models,
                                     **{needed: context.optional(needed) for needed in part.of(part.plugin.needs)},
                                     **({"desk": desks[name]} if name in desks else {}))
            for name, part in _parts(context.settings).items()}


def _write_judged(path: Path, desks: Mapping[str, Desk]) -> None:
    """What was asked about the groups of a part, taken off the desks."""
    lines = [json.dumps({"score": name, **row}) for name, desk in desks.items() for row in desk.rows]
    if lines:
        whole.write_atomic(path, "".join(f"{line}\n" for line in lines))
    else:
        path.unlink(missing_ok=True)  # of an attempt that was killed
    for desk in desks.values():
        desk.rows.clear()


def count_judged(context: Context) -> Counter[str]:
    """Counts of what was asked, and why there is no verdict, for the manifest; the latter are returned."""
    asked, disagree, missing = Counter[str](), Counter[str](), Counter[str]()
    for path in sorted((context.out / "judged").glob("*.jsonl")):
        for row in map(json.loads, path.read_text().splitlines()):
            asked[row["score"]] += bool(_ASKED & row.keys())
            disagree[row["score"]] += row.get("agree") is False
            missing.update([f"{row['score']}: {row['why']}"] if row["why"] else [])
    for name, number in (+asked).items():
        context.report.count(**{f"{name}_judged": number, f"{name}_orders_disagree": disagree[name]})
    for why, number in missing.items():
        context.report.drop(why, number)
    return missing


STAGE = Stage(
    Settings, run, version=2,
    inputs={"groups": "one", "model": "optional", "policy": "optional", "reference": "optional", "logps": "optional"},
    seeded=False, runtime=Runtime, files=files, check=check, required=required, wanted=wanted, kinds=kinds)
