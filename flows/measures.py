"""Numbers of a paper's table beside win rates: columns of side tables that the runs have written, prompt by prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.inspection import load_run
from pipeline import statistics, store
from pipeline.arms import Judged
from pipeline.runs import Run

SFT = "sft"


@dataclass(frozen=True)
class Measure:
    """Which number of every prompt."""

    says: str  # what it is, with its unit
    step: str  # of each iteration, whose artifact holds the side table
    table: str  # its folder there
    column: str
    completion: int | None = None  # of each group: 0 the chosen one; null: the mean over all
    times: float = 1.0  # a factor: scores rise where a paper's numbers fall
    start: str | None = None  # the step with those of the SFT model; null: it has 0, being what is compared with


def of_arms(place: Path, runs: Mapping[str, Sequence[str]], measure: Measure) -> dict[str, dict[int, list[Judged]]]:
    """Arm -> iteration -> the numbers of each of its runs that has them. The SFT model's, of each seed, under "sft"."""
    found: dict[str, dict[int, list[Judged]]] = {SFT: {}}
    start: dict[str, dict[str, float]] = {}
    for arm, names in runs.items():
        several = found.setdefault(arm, {})
        for run in (load_run(place, name) for name in names):
            seed = str(run.config["seed"])
            for iteration, one in _read(place, run, seed, measure, measure.step).items():
                several.setdefault(iteration, []).append(one)
                start.setdefault(seed, {}).update(dict.fromkeys(one.outcomes, 0.0) if measure.start is None else {})
            for one in _read(place, run, seed, measure, measure.start).values():
                start.setdefault(seed, {}).update(one.outcomes)
    found[SFT][0] = [Judged(SFT, seed, 0, "", {}, {}, values, (measure.says, "")) for seed, values in start.items()]
    return found


def _read(place: Path, run: Run, seed: str, measure: Measure, name: str | None) -> dict[int, Judged]:
    made = {}
    for step in run.steps:
        artifact = store.find(place, step["stage"], step["key"]) if step.get("key") else None
        if step["name"].partition("[")[0] == name and artifact is not None:
            origin = {"value": f"{artifact.kind}/{artifact.key[:8]}"}
            values = _values(artifact.path / measure.table, measure)
            made[step["iteration"]] = Judged(run.name, seed, step["iteration"], artifact.key, {}, origin, values,
                                             (measure.says, ""))
    return made


def _values(table: Path, measure: Measure) -> dict[str, float]:
    """Prompt id -> its number. Several groups of one prompt are "p#0", "p#1" ...: their mean."""
    from pipeline import columns  # pyarrow

    by_prompt: dict[str, list[float]] = {}
    for name, k, value in columns.numbers(table, measure.column):
        if measure.completion in (None, k) and value is not None:
            by_prompt.setdefault(name.partition("#")[0], []).append(measure.times * value)
    return {name: statistics.mean(values) for name, values in by_prompt.items()}
