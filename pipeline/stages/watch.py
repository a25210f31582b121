"""What a policy still can: its answers to questions with known answers, against the start model's. Selects nothing.

Every answer is checked by the rule for what its question brings: choices, tests, instructions, or a final answer
(pipeline.rewards). Writes watch.json with both accuracies, their intervals, and the questions lost and won.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline import statistics
from pipeline.config import load_part, setting
from pipeline.errors import UserError
from pipeline.records import Group, target_of
from pipeline.rewards.contract import Desk, Scorer
from pipeline.stage import Context, Stage, derive_seed, told

_RULES = {"choices": "choice", "tests": "unit_tests", "instructions": "ifeval", "answer": "maths"}  # the first there is


@dataclass(frozen=True)
class Settings:
    confidence: float = setting(0.95, above=0.5, below=1.0)  # of the intervals
    resamples: int = setting(2000, low=100, high=100_000)  # of the bootstrap of the difference


@dataclass(frozen=True)
class Watched:
    """Rates over questions, in [0, 1]; a question's is the mean over its answers."""

    questions: int
    accuracy: float
    accuracy_low: float  # Wilson
    accuracy_high: float
    start_accuracy: float
    gain: float  # accuracy - start_accuracy
    gain_low: float  # bootstrap over questions
    gain_high: float
    lost: int  # questions the start model did better
    won: int


def run(context: Context) -> None:
    from pipeline import tables

    settings: Settings = context.settings
    desk = Desk(run=context.report.run)
    now, start = (rates(tables.read(context.one(name)), desk) for name in ("groups", "start"))
    for row in desk.rows:
        context.report.drop(row["why"])
    ids = sorted(now.keys() & start.keys())
    if not ids:
        raise UserError("watch: no question was answered by both models and could be checked")
    seed = derive_seed(context.seed, "watch", "bootstrap")
    found = compared([now[name] for name in ids], [start[name] for name in ids], seed, settings)
    lines: list[dict[str, Any]] = [{"id": name, "now": now[name], "start": start[name]} for name in ids]
    (context.out / "watch.json").write_text(json.dumps({**asdict(found), "rows": lines}, indent=1) + "\n")
    context.report.count(**asdict(found))
    context.report.metric(0, accuracy=found.accuracy, start_accuracy=found.start_accuracy)


def rates(groups: Iterable[Group], desk: Desk) -> dict[str, float]:
    """Question -> mean score of its answers, of those that can be checked; 1 is right."""
    by_rule: dict[str, list[Group]] = {}
    for group in groups:
        target = target_of(group)
        rule = next((rule for name, rule in _RULES.items() if target is not None and vars(target)[name]), "")
        if rule and group.completions:
            by_rule.setdefault(rule, []).append(group)
    found: dict[str, float] = {}
    for rule, some in by_rule.items():
        part = load_part({"module": f"pipeline.rewards.{rule}"}, "watch", Scorer)
        for group, scores in zip(some, part.plugin.scorer(part.settings, desk=desk)(some), strict=True):
            known = [float(score) for score in scores if not isinstance(score, Mapping) and math.isfinite(score)]
            found |= {group.id: statistics.mean(known)} if known else {}
    return found


def compared(now: list[float], start: list[float], seed: int, settings: Settings) -> Watched:
    accuracy, before = statistics.mean(now), statistics.mean(start)
    differences = [one - other for one, other in zip(now, start, strict=True)]
    return Watched(len(now), accuracy, *statistics.wilson(accuracy, len(now), settings.confidence), before,
                   statistics.mean(differences),
                   *statistics.bootstrap(differences, seed, settings.resamples, settings.confidence),
                   sum(one < 0 for one in differences), sum(one > 0 for one in differences))


STAGE = Stage(Settings, run, version=1, inputs={"groups": "one", "start": "one"}, seeded=True,
              says=told("right about {accuracy:.1%} of {questions:,.0f} questions",
                        "the start model {start_accuracy:.1%}", "{lost:.0f} lost, {won:.0f} won"))
