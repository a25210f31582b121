"""Decide from an iteration's evaluation whether the loop goes on, and from which model. Writes

    gate.json      decision ("pass", "stop" or "previous"), the reasons, what was compared, the iteration gone on from,
                   and under "undecided" the rules whose numbers were missing: those stop nothing, and are said
    model/         the policy to go on from: this iteration's, or that of the last iteration that passed
    accepted.json  the evaluation of that policy, null for the model the loop began with

A run ends after a gate that says "stop"; its model/ is then the best the run has.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.config import setting
from pipeline.evaluation import gate
from pipeline.stage import Context, Stage

PASS, STOP, PREVIOUS = "pass", "stop", "previous"
GATE, ACCEPTED = "gate.json", "accepted.json"


@dataclass(frozen=True)
class Settings:
    """The rules, and what happens to an iteration that breaks one."""

    iteration: int = setting(low=1)  # the one that is judged
    action: str = setting(STOP, choices=(STOP, PREVIOUS))  # end the run, or go on from the last one that passed
    win_rate_fall: float | None = setting(0.0, low=0.0, high=1.0)  # judge down by more, learned reward up; null: off
    length_growth: float | None = setting(0.5, low=0.0)  # share by which answers may grow; null: off
    learned: str = "reward"  # the score the loop optimises
    fixed_baseline: bool = True  # all iterations are compared with the same baseline

    def check(self) -> list[tuple[str, str]]:
        if not self.fixed_baseline:
            return [("fixed_baseline", "false, but a gate compares the win rates of iterations, which needs one "
                                       "baseline for all; use evaluation=default or gate=none")]
        return []


def run(context: Context) -> None:
    settings: Settings = context.settings
    evaluation = json.loads((context.one("evaluation") / "evaluation.json").read_text())
    before, origin = _before(context, evaluation)
    now = gate.standing(evaluation, settings.learned)
    rules = gate.Rules(settings.win_rate_fall, settings.length_growth)
    found = gate.findings(now, before, rules, evaluation["score"], settings.learned)
    broken = found.reasons
    decision = settings.action if broken else PASS
    previous = context.optional("previous")
    source = context.one("model") if not broken else context.one("start") if previous is None else previous / "model"
    link_tree(source, context.out / "model")
    accepted = _accepted(previous) if broken else {"iteration": settings.iteration, "evaluation": evaluation}
    (context.out / ACCEPTED).write_text(json.dumps(accepted, indent=2, allow_nan=False) + "\n")
    (context.out / GATE).write_text(json.dumps({"schema": 2, "iteration": settings.iteration, "decision": decision,
                                                "reasons": broken, "undecided": found.undecided,
                                                "goes_on_from": settings.iteration if not broken else origin,
                                                "rules": asdict(rules), "compared_with": origin, "now": asdict(now),
                                                "before": asdict(before)}, indent=2, allow_nan=False) + "\n")
    context.report.count(passed=float(not broken), undecided=len(found.undecided),
                         goes_on_from=settings.iteration if not broken else origin)
    print("; ".join([*(broken or ["the iteration passed"]), *found.undecided]), flush=True)


def _before(context: Context, evaluation: dict[str, Any]) -> tuple[gate.Standing, int]:
    """Of the last iteration that passed and its number; of the baseline, 0, where there is none."""
    accepted = _accepted(context.optional("previous"))
    if accepted is None:
        return gate.baseline_standing(evaluation, context.settings.learned), 0
    return gate.standing(accepted["evaluation"], context.settings.learned), int(accepted["iteration"])


def _accepted(previous: Path | None) -> dict[str, Any] | None:
    return None if previous is None else json.loads((previous / ACCEPTED).read_text())


def link_tree(source: Path, target: Path) -> None:
    """`target` with the files of `source`: hard links, which cost no disk; copies where the file system has none."""
    shutil.rmtree(target, ignore_errors=True)  # of a try that was killed
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, place)
        except OSError:
            shutil.copyfile(path, place)


STAGE = Stage(Settings, run, version=2,
              inputs={"model": "one", "evaluation": "one", "start": "one", "previous": "optional"}, seeded=False)
