"""`align report NAME --timeline`: where the seconds of a run went, step by step, from its events and manifests."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows import layout, screen
from flows.inspection import load_run
from pipeline import clock, runs, store
from pipeline.errors import UserError
from pipeline.files import parsed_lines

START, COMMIT, ENGINE, BETWEEN = "start-up", "commit", "engine", "between"
COLUMNS = (START, *[part for part in clock.PARTS if part != clock.COMPUTE], COMMIT, ENGINE, BETWEEN, clock.COMPUTE)
_AROUND = (START, clock.IMPORT, COMMIT, BETWEEN)  # what no stage asked for


@dataclass(frozen=True)
class Span:
    """A step that this run has made."""

    step: str
    seconds: float  # since the one before ended, in the same process of the run
    parts: dict[str, float] = field(default_factory=dict)  # by COLUMNS, together `seconds`; empty: nobody counted


def spans(workspace: Path, name: str) -> list[Span]:
    """The steps it made, in the order they ended. One that was found done took no time worth a line."""
    run = load_run(workspace, name)
    stages = {step["name"]: step["stage"] for step in run.steps}
    sampling = {step["name"] for step in run.steps if _samples(step["stage"])}
    path = runs.folder(workspace, name) / "events.jsonl"
    events = parsed_lines(path.read_bytes(), step=str, event=str, time=(int, float), pid=int) if path.exists() else []
    began, ended, found = dict[str, tuple[float, float]](), dict[int, float](), list[Span]()
    for event in events:
        if event["event"] == "started":  # in a process of the run that has just ended another step, if none is running
            at = event["time"]
            began[event["step"]] = at, max(0.0, at - ended.pop(event["pid"], at))
            continue
        if event["event"] == "finished" and event["step"] in began and event["step"] in stages:
            at, waited = began.pop(event["step"])
            artifact = store.find(workspace, stages[event["step"]], str(event.get("key")))
            parts = _parts(event["time"] - at, artifact.manifest) if artifact else {}
            if parts:
                parts |= {ENGINE if event["step"] in sampling else BETWEEN: waited}
            found.append(Span(event["step"], event["time"] - at + waited, parts))
        ended[event["pid"]] = event["time"]
    return found


def _samples(kind: str) -> bool:
    from pipeline import stage

    try:
        return stage.load(kind).samples
    except UserError:  # of a stage that is no more
        return False


def _parts(seconds: float, manifest: dict[str, Any]) -> dict[str, float]:
    """Of a step's seconds from its start to its end; {} where older code made it."""
    spent, process = manifest.get("spent"), manifest.get("process_seconds")
    if not isinstance(spent, dict) or not isinstance(process, (int, float)):
        return {}
    known = {part: float(spent[part]) for part in clock.PARTS if isinstance(spent.get(part), (int, float))}
    return {**known, START: max(0.0, process - sum(known.values())), COMMIT: max(0.0, seconds - process)}


def table(found: Sequence[Span], width: int | None) -> list[str]:
    """The spans as lines of a terminal of that width, the whole run below, and where its next second is."""
    whole, sums = sum(span.seconds for span in found), dict.fromkeys(COLUMNS, 0.0)
    for span in found:
        for part, seconds in span.parts.items():
            sums[part] += seconds
    rows = [_row(span.step, span.seconds, span.parts) for span in found]
    share = {part: f"{seconds / whole:.0%}" for part, seconds in sums.items() if seconds >= 0.005 * whole}
    rows += [_row("all", whole, sums), ("of it", "", *(share.get(part, "") for part in COLUMNS))]
    largest = sorted(((seconds, part, span.step) for span in found for part, seconds in span.parts.items()),
                     reverse=True)[:3]
    around = sum(sums[part] for part in _AROUND)
    return [*layout.lines(("step", "seconds", *COLUMNS), rows, width), "",
            *layout.wrapped(f"start-up, imports, commits and the time between steps: {around:.1f} s, "
                            f"{around / whole:.1%} of {whole:.1f} s", width),
            *layout.wrapped("most of it: " + "; ".join(f"{part} of {step} {seconds:.1f} s"
                                                       for seconds, part, step in largest), width)]


def _row(step: str, seconds: float, parts: dict[str, float]) -> tuple[str, ...]:
    shown = (parts.get(part, 0.0) for part in COLUMNS)
    return (step, f"{seconds:.1f}", *(f"{value:.1f}" if value >= 0.05 else "" for value in shown))


def show(workspace: Path, name: str) -> int:
    """Print it. Exit code as of `align`."""
    found = spans(workspace, name)
    if not found:
        raise UserError(f"run: {name} has made no step of its own: each was there already, or none has ended")
    screen.say("\n".join(table(found, screen.width())))
    if unknown := [span.step for span in found if not span.parts]:
        screen.say(f"not split, as older code made them or they are gone: {', '.join(unknown)}")
    return 0
