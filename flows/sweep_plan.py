"""What the runs of a sweep share, and what is left to compute, before anything is."""

from collections.abc import Sequence
from dataclasses import dataclass

from flows import screen
from flows.estimate import Estimate, estimate
from flows.prepare import CheckedRun
from pipeline import plan, store
from pipeline.config import settled
from pipeline.plan import Planned
from pipeline.stage import keyed


@dataclass(frozen=True)
class Line:
    """The steps of one name: in how many runs, how many different ones, and how many of these are made already."""

    step: str
    runs: int
    different: int
    cached: int


@dataclass(frozen=True)
class SweepPlan:
    """A line for each step, and what the different ones that are not made yet will cost together."""

    lines: list[Line]
    cost: Estimate

    @property
    def summary(self) -> str:
        steps, different, cached = (sum(getter) for getter in zip(*(
            (line.runs, line.different, line.cached) for line in self.lines), strict=True))
        return f"{steps} steps, {different} different ones: {cached} cached, {different - cached} to run"


def sweep_plan(prepared: Sequence[CheckedRun]) -> SweepPlan:
    """Of runs in one workspace. Two steps are one where stage, settings, seed and everything before them are."""
    seen: dict[str, set[str]] = {}
    cached: dict[str, set[str]] = {}
    number: dict[str, int] = {}
    known: set[str] = set()
    costs = []
    for run in prepared:
        planned = plan.look_up_all(run.workspace, run.steps)
        marks = identities(planned)
        new = set()
        for item in planned:
            name, mark = item.step.name, marks[item.step.name]
            number[name] = number.get(name, 0) + 1
            seen.setdefault(name, set()).add(mark)
            cached.setdefault(name, set()).update({mark} if item.cached else ())
            new |= set() if mark in known else {name}
            known.add(mark)
        costs.append(estimate(run.run.config, planned, run.run.steps, only=new))
    lines = [Line(name, number[name], len(seen[name]), len(cached[name])) for name in _in_order(prepared)]
    return SweepPlan(lines, sum(costs[1:], costs[0]))


def show(name: str, prepared: Sequence[CheckedRun], made: SweepPlan) -> None:
    """Print it."""
    rows = [[line.step, str(line.runs), str(line.different), str(line.cached), str(line.different - line.cached)]
            for line in made.lines]
    screen.table(f"sweep {name}: {len(prepared)} runs in {prepared[0].workspace}",
                 ["step", "in runs", "different", "cached", "to run"], rows)
    screen.paragraph(str(made.cost))


def identities(planned: Sequence[Planned]) -> dict[str, str]:
    """Step -> a text that two steps share if they will be one artifact: the key, or what it will be made of."""
    found: dict[str, str] = {}
    for item in planned:
        step, stage = item.step, item.step.plugin
        before = {name: [f"{found[ref.step]}/{ref.part}" for ref in refs] for name, refs in step.inputs.items()}
        outside = [*map(str, stage.files(step.settings, step.runtime)), *stage.sources(step.settings, step.runtime)]
        seed = step.seed if settled(stage.seeded, step.settings) else None
        found[step.name] = item.key or store.fingerprint(
            step.stage, stage.version, keyed(step.settings), {**before, "outside": outside}, seed)
    return found


def _in_order(prepared: Sequence[CheckedRun]) -> list[str]:
    """Every step's name, those of the longest run first."""
    longest = sorted(prepared, key=lambda run: -len(run.steps))
    return list(dict.fromkeys(step.name for run in longest for step in run.steps))
