"""The list of runs, and one run as it is now."""

from pathlib import Path

from flows import rewarded, verdicts
from flows.dashboard import facts, written
from flows.dashboard.facts import Row
from flows.dashboard.files import STEP, Files, NotHere, signature
from flows.failures import meaning
from flows.told import told
from pipeline import runs
from pipeline.errors import command
from pipeline.files import parsed_lines

_TAIL = 12  # lines of a failed or running step


def all_runs(files: Files, first: int = 0) -> Row:
    """Every run, newest first, or the `first` ones alone, which cost their own share of the reading; "total" is of all.

    A record that cannot be read is listed as such and hides no other.
    """
    names = files.run_names()
    return {"workspace": str(files.workspace), "total": len(names),
            "runs": [_summary(files, name) for name in (names[:first] if first > 0 else names)]}


def _summary(files: Files, name: str) -> Row:
    """One line of the list. Reads the manifests of the evaluations only: a list of hundreds must be there at once."""
    changed = 0.0
    try:
        changed = max((s[0] for f in ("run.json", "metrics.jsonl", "progress.json")
                       if (s := signature(files.run_path(name, f)))), default=0) / 1e9
        path = files.run_path(name, "run.json")
        record, fixed = files.remember(("summary", path), signature(path), lambda: _slim(files.run(name, kept=False)))
        steps, state = record["steps"], facts.live_state(files, record)
        judged = [rate for s in steps if s["stage"] == "evaluate" and (rate := _win_rate(files, s)) is not None]
        done = sum(s["state"] in ("done", "cached") for s in steps)
    except (NotHere, KeyError, TypeError, AttributeError, ValueError):
        return {"name": name, "state": "unreadable", "changed": round(changed, 1)}
    running = state == runs.RUNNING
    going = [s["name"] for s in steps if running and s["state"] == runs.RUNNING]
    return {"name": name, **fixed, "state": state, "changed": round(changed, 1), "created": record.get("created"),
            "done": done, "total": len(steps), "current": ", ".join(going) or None,
            "progress": _progress(files, name, going[0]) if len(going) == 1 else None,
            "win_rates": judged, **written.about(files, name)}


def _slim(record: Row) -> tuple[Row, Row]:
    """What the list needs of a record, and what it says of the run whatever its state: of a thousand runs all stays."""
    steps = [{k: step.get(k) for k in ("name", "stage", "state", "key", "iteration")} for step in record["steps"]]
    return ({"name": record["name"], "outcome": record["outcome"], "created": record["created"], "steps": steps},
            {**facts.about(record), "experiment": facts.experiment(record["config"]),
             "typed": [word for word in _words(record) if word.partition("=")[0] not in ("seed", "seeds", "recipe")]})


def _win_rate(files: Files, step: Row) -> Row | None:
    manifest = files.manifest(step["stage"], step.get("key")) or {}
    counts = manifest.get("counts", {})
    if "win_rate" not in counts:
        return None
    bounds = {k: counts[f"win_rate_{k}"] for k in ("low", "high") if f"win_rate_{k}" in counts}
    return {"value": counts["win_rate"], "step": step["name"], "iteration": step["iteration"],
            "level": facts.level(manifest), **bounds}


def one_run(files: Files, name: str) -> Row:
    """The run's steps with states, times, memory and origin; its iterations; progress and logs of what matters now."""
    record = files.run(name)
    state, steps = facts.live_state(files, record), facts.steps_of(files, record)
    events = _events(files, name)
    for step in steps:
        step |= events.get(step["name"], {})
        if step["state"] == runs.RUNNING:
            step["progress"] = _progress(files, name, step["name"])
        if step["state"] in (runs.RUNNING, runs.FAILED, runs.INTERRUPTED):
            step["tail"] = log_tail(files, name, step["name"], _TAIL)
        if step["state"] == runs.FAILED and "code" in step:
            step["means"] = meaning(step["code"])
    return {"name": name, **facts.about(record), "state": state, "created": record.get("created"), "steps": steps,
            "iterations": facts.iterations(steps, record["config"]),
            "columns": [vars(c) for c in facts.columns(record["config"])],
            "verdicts": _verdicts(steps, record["config"]),
            "told": told(_counted(steps), rewarded.count_of(record["config"])),
            "command": _typed(files, "run", *_words(record), f"run={name}"),
            "go_on": None if state in (runs.RUNNING, runs.DONE) else _typed(files, "run", f"run={name}"),
            "overrides": record.get("overrides", []), "step_overrides": record.get("step_overrides", {})}


def _words(record: Row) -> list[str]:
    """What was typed, but for the run's name and place."""
    return [word for word in record.get("overrides", []) if word.partition("=")[0] not in ("run", "workspace")]


def _typed(files: Files, *words: str) -> str:
    return command(files.workspace, *words).strip()


def _verdicts(steps: list[Row], config: Row) -> list[Row]:
    """What the rules of flows/verdicts.py say of each iteration."""
    said = verdicts.of_steps(_counted(steps), rewarded.count_of(config))
    return [{"iteration": iteration, "said": [vars(one) for one in found]} for iteration, found in said]


def _counted(steps: list[Row]) -> list[tuple[int, str, Row]]:
    return [(s["iteration"], s["stage"], s["counts"]) for s in steps]


def log_tail(files: Files, name: str, step: str, lines: int) -> list[str]:
    """The last lines a step's process printed."""
    if not STEP.match(step):
        raise NotHere(f"{step!r} is no step's name")
    path = files.run_path(name, "logs", f"{step}.log")
    return [] if signature(path) is None else runs.tail(path, lines)


def _progress(files: Files, name: str, step: str) -> Row | None:
    """How far the running step is, and how long the rest will take at the pace of the process that runs it.

    What an earlier process had done before it was stopped tells nothing of this one's pace.
    """
    state = runs.progress(files.workspace, name, step)
    if state is None or not state["total"]:
        return None
    done, total, seen, began = state["done"], state["total"], state.get("time", 0), state.get("began")
    made = min(done, total) - began["done"] if began else 0
    left = (seen - began["time"]) * (total - done) / made if began and made > 0 else None
    # from the moment of the last sign of progress, so that the answer changes only when the file does
    return {"done": done, "total": total, "unit": state["unit"], "time": seen,
            "ends": round(seen + left, 1) if left is not None else None}


def _events(files: Files, name: str) -> dict[str, Row]:
    """Step -> when it started and ended the last time, from events.jsonl."""
    path = files.run_path(name, "events.jsonl")
    sign = signature(path)
    return {} if sign is None else files.remember(("events", path), sign, lambda: _read_events(path))


def _read_events(path: Path) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for event in parsed_lines(path.read_bytes(), step=str, event=str, time=(int, float)):
        step = event["step"]
        if event["event"] == "started":
            found[step] = {"started": event["time"]}
        elif event["event"] in ("finished", "failed"):
            found.setdefault(step, {})["ended"] = event["time"]
            found[step] |= {"code": event["code"]} if isinstance(event.get("code"), int) else {}
    return found
