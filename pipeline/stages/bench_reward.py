"""How often a scorer prefers what people prefer: pairs of a benchmark (RewardBench and its like), by subset.

Whatever scores the loop's samples is asked: a trained reward model, a folder, a rule, a judge. Writes bench.json: for
all pairs, and for each subset (`subset` of a row, else the name of its file), pipeline.training.reward.measured beside
the number of pairs. A pair of which one answer has no score counts as dropped. Trains nothing and selects nothing.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import Part, load_part, part_problems
from pipeline.errors import UserError
from pipeline.files import read_sealed, write_sealed
from pipeline.formats import files as data
from pipeline.records import Group
from pipeline.rewards.contract import Desk, Limits, Score, Scorer
from pipeline.stage import Context, Stage, told
from pipeline.statistics import mean
from pipeline.training.settings import TrainRuntime

_SLICE = 256  # groups that are scored once, whenever the process is killed
NONE = "no pair, expected rows with chosen and rejected, or ranked answers (docs/data.md)"


@dataclass(frozen=True)
class Settings:
    reward: dict[str, Any]  # what scores: a part such as {module: pipeline.rewards.model}
    format: data.Settings = field(default_factory=data.Settings)  # how the rows are read

    def check(self) -> list[tuple[str, str]]:
        return part_problems(self.reward, "reward", Scorer)


@dataclass(frozen=True)
class Runtime:
    root: str | None = None  # the file, folder or hf:org/name with the pairs; null: nothing is measured
    models: TrainRuntime = field(default_factory=TrainRuntime)  # how a scoring model runs
    judge: Limits = field(default_factory=Limits)  # how servers are asked
    answers: str = "judge"  # folder in which a judge's answers are kept for all runs


def run(context: Context) -> None:
    part = _part(context.settings)
    groups, left_out = _read(context.settings, context.runtime)
    desk = Desk(context.runtime.judge, Path(context.runtime.answers), context.report.run)
    needed = {name: context.optional(name) for name in part.of(part.plugin.needs)}
    score = part.plugin.scorer(part.settings, model=context.optional("model"), runtime=context.runtime.models, **needed,
                               **({"desk": desk} if part.plugin.desk else {}))
    scores = list[list[float]]()
    for start in range(0, len(groups), _SLICE):
        context.report.progress(start, len(groups), "pairs")
        place = context.work / "scored" / f"{start}.json"  # one that is there a killed process has left
        if (found := read_sealed(place)) is None:
            made = [[_first(one) for one in of_group] for of_group in score(groups[start : start + _SLICE])]
            write_sealed(place, found := {"scores": made})
        scores += found["scores"]
    scored = [(group, values) for group, values in zip(groups, scores, strict=True) if all(map(math.isfinite, values))]
    for reason, number in [*left_out.items(), ("without a score", len(groups) - len(scored))]:
        context.report.drop(reason, number)
    if not scored:
        raise UserError(f"reward.bench: none of the {len(groups)} pairs has two scores by {part.name}")
    whole, subsets = numbers(scored), dict[str, list[tuple[Group, list[float]]]]()
    for one in scored:
        subsets.setdefault(one[0].dataset, []).append(one)
    of_subsets = {name: numbers(some) for name, some in sorted(subsets.items())}
    if len(of_subsets) > 1:
        whole["mean_of_subsets"] = mean([one["accuracy"] for one in of_subsets.values()])
    (context.out / "bench.json").write_text(json.dumps({"all": whole, "subsets": of_subsets}, indent=1) + "\n")
    context.report.count(subsets=len(of_subsets), **whole)
    context.report.metric(0, **whole)


def numbers(scored: Sequence[tuple[Group, Sequence[float]]]) -> dict[str, float]:
    """Of every answer against the preferred one of its group, which is the first; lengths are of characters."""
    from pipeline.training import reward

    margins = [values[0] - other for _, values in scored for other in values[1:]]
    longer = [len(group.completions[0].text) - len(other.text) for group, _ in scored
              for other in group.completions[1:]]
    return {"pairs": len(margins), **reward.measured(margins, longer, len(scored))}


def _first(score: Score) -> float:
    return float(score) if isinstance(score, (int, float)) else float(score[""])


def _part(settings: Settings) -> Part[Scorer]:
    return load_part(settings.reward, "reward.scorer", Scorer)


def _root(runtime: Runtime) -> Path:
    if runtime.root is None:
        raise UserError("reward.bench.root: not set, expected a file or folder with pairs")
    return Path(runtime.root)


def _read(settings: Settings, runtime: Runtime) -> tuple[list[Group], dict[str, int]]:
    try:
        return data.preferences(_root(runtime), settings.format)
    except UserError as error:  # in the words of the bench's own keys
        raise UserError(*(one.replace("data.", "reward.bench.", 1) if one.startswith("data.") else one
                          for one in error.problems)) from None


def files(settings: Settings, runtime: Runtime) -> list[Path]:
    part = _part(settings)
    return [*data.files(_root(runtime), settings.format), *part.plugin.files(part.settings)]


def check(settings: Settings, runtime: Runtime) -> list[str]:
    """Whether there are pairs that can be read."""
    try:
        return [] if _read(settings, runtime)[0] else [f"reward.bench.root: {runtime.root} has {NONE}"]
    except UserError as error:
        return error.problems


def required(settings: Settings) -> dict[str, str]:
    part = _part(settings)
    return {name: f"a score is computed with {name}" for name in sorted(part.of(part.plugin.needs))}


def wanted(settings: Settings) -> set[str]:
    part = _part(settings)
    return set(required(settings)) | ({"model"} if part.of(part.plugin.needs_model) else set())


STAGE = Stage(
    Settings, run, version=1, inputs={"model": "optional", "policy": "optional", "reference": "optional"}, seeded=False,
    runtime=Runtime, devices=lambda settings, runtime: int(_part(settings).plugin.holds_model), files=files,
    check=check, required=required, wanted=wanted,
    sources=lambda settings, runtime: data.names(_root(runtime), settings.format),
    says=told("right about {accuracy:.1%} ({accuracy_low:.1%} to {accuracy_high:.1%}) of {pairs:,.0f} pairs",
              "length alone {length_accuracy:.1%}, chance 50 %", "mean of {subsets:.0f} subsets {mean_of_subsets:.1%}"))
