"""`align status`, `align verify`, `align gc`: they read files and nothing else."""

from __future__ import annotations

import json
import time
from pathlib import Path

from flows import screen
from pipeline import gc, runs, store
from pipeline.errors import UserError, nearest


def status(workspace: str, name: str | None) -> int:
    """A table of the runs, or of one run's steps."""
    place = _workspace(workspace)
    if name is None:
        return _all_runs(place)
    run = _load(place, name)
    progress = _progress(place, name)
    rows = []
    for step in run.steps:
        seconds = f"{step['seconds']:.1f} s" if "seconds" in step else ""
        state, live = step["state"], runs.outcome(place, run)
        if state == "running" and live != runs.RUNNING:
            state = runs.INTERRUPTED
        if state == "running" and progress and progress.get("step") == step["name"] and progress.get("total"):
            state = f"running {100 * progress['done'] / progress['total']:.0f} %"
        artifact = store.find(place, step["stage"], step["key"]) if step.get("key") else None
        if state in ("done", "cached") and artifact is None:
            state = "missing"
        rows.append([step["name"], state, seconds, step.get("key") or "",
                     screen.brief(artifact.manifest["counts"]) if artifact else ""])
    screen.table(f"run {name}: {runs.outcome(place, run)}", ["step", "state", "time", "key", "result"], rows)
    for step in run.steps:
        if step["state"] == runs.FAILED:
            screen.say(f"\nlast lines of {runs.log_path(place, name, step['name'])}:")
            lines = runs.tail(runs.log_path(place, name, step["name"]), 10)
            screen.say("\n".join(f"    {line}" for line in lines))
    report = runs.folder(place, name) / "report.md"
    if report.exists():
        screen.say(f"\nreport: {report}")
    return 0


def _all_runs(place: Path) -> int:
    names = runs.names(place)
    if not names:
        screen.say(f"no run in {place} yet; start one with: align run recipe=pco")
        return 0
    rows = []
    for name in names:
        run = runs.load(place, name)
        assert run is not None
        finished = sum(s["state"] in ("done", "cached") for s in run.steps)
        changed = (runs.folder(place, name) / "run.json").stat().st_mtime
        choices = run.config["choices"]
        rows.append([name, choices.get("recipe", ""), choices.get("data", ""), runs.outcome(place, run),
                     f"{finished}/{len(run.steps)}", f"{screen.age(time.time() - changed)} ago"])
    screen.table(f"runs in {place}", ["run", "recipe", "data", "state", "steps", "changed"], rows)
    return 0


def verify(workspace: str, name: str | None) -> int:
    """Check every hash of every artifact, or of one run's. Exit code 1 if anything is damaged."""
    place = _workspace(workspace)
    wanted = None
    if name is not None:
        wanted = {(s["stage"], s["key"]) for s in _load(place, name).steps if s.get("key")}
    problems, files, number = [], 0, 0
    for manifest in sorted((place / "artifacts").glob(f"*/*/{store.MANIFEST}")):
        kind, key = manifest.parent.parent.name, manifest.parent.name
        if key.startswith(".") or (wanted is not None and (kind, key) not in wanted):
            continue
        number += 1
        try:
            artifact = store.Artifact(kind, key, manifest.parent, json.loads(manifest.read_text()))
            problems += store.damage(artifact)
            files += len(artifact.manifest["files"])
        except (ValueError, KeyError) as error:
            problems.append(f"{manifest}: not a manifest ({error})")
    for problem in problems:
        screen.say(f"damaged: {problem}")
    if problems:
        screen.say("remove the artifact's folder and run again: only that artifact is rebuilt; later steps rerun "
                    "only if its bytes change")
    screen.say(f"{number} artifacts, {files} files, {len(problems)} problems")
    return 1 if problems else 0


def collect(workspace: str, apply: bool) -> int:
    """Say what no run needs any more and what it would free; remove it only when asked to."""
    place = _workspace(workspace)
    garbage = gc.find_garbage(place)
    if not garbage:
        screen.say("nothing to remove: every artifact belongs to a run")
        return 0
    rows = [[str(item.path.relative_to(place)), screen.size(item.size), item.reason] for item in garbage]
    screen.table("", ["folder", "size", "why"], rows)
    if apply:
        screen.say(f"freed {screen.size(gc.remove(garbage))}")
    else:
        total = screen.size(sum(item.size for item in garbage))
        screen.say(f"would free {total}; remove it with: align gc --apply")
    return 0


def _workspace(text: str) -> Path:
    place = Path(text).expanduser().resolve()
    if not place.is_dir() and text != "workspace":
        raise UserError(f"workspace: no folder {place}")
    return place


def _load(place: Path, name: str) -> runs.Run:
    run = runs.load(place, name)
    if run is None:
        raise UserError(f"run: no run named {name!r} in {place}{nearest(name, runs.names(place))}")
    return run


def _progress(place: Path, name: str) -> dict[str, float]:
    try:
        return dict(json.loads((runs.folder(place, name) / "progress.json").read_text()))
    except (OSError, ValueError):
        return {}
