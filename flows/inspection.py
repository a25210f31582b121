"""`align status`, `explain`, `verify`, `gc`: what is there and why. They read; only `gc --apply` removes."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows import kept_engine, results, screen, weekly
from pipeline import files, gc, plan, runs, stage, store
from pipeline.config import flat
from pipeline.errors import UserError, command, nearest

# What may differ between calls of one run.
FREE = ("run", "workspace", "iterations", "hardware", "launcher", "tracking", "notify", "choices")
SEEDS = ("seed", "seeds")  # in which the runs of one experiment may differ besides


def status(workspace: str, name: str | None) -> int:
    """A table of the runs, or of one run's steps."""
    place = folder_of(workspace)
    if name is None:
        return _all_runs(place)
    run = load_run(place, name)
    rows, old = [], []
    for step in run.steps:
        seconds = f"{step['seconds']:.1f} s" if "seconds" in step else ""
        state, live = step["state"], runs.outcome(place, run)
        if state == "running" and live != runs.RUNNING:
            state = runs.INTERRUPTED
        if state == "running" and (far := runs.progress(place, name, step["name"])) and far["total"]:
            state = f"running {100 * far['done'] / far['total']:.0f} %"
        artifact = store.find(place, step["stage"], step["key"]) if step.get("key") else None
        if state in ("done", "cached") and artifact is None:
            state = "missing"
        if artifact is not None and _of_another_version(artifact):
            old.append(step["name"])
        rows.append([step["name"], state, seconds, step.get("key") or "",
                     results.of(artifact) if artifact else ""])
    screen.table(f"run {name}: {runs.outcome(place, run)}", ["step", "state", "time", "key", "result"], rows,
                 spare=("key",))
    if old:
        screen.say(f"\nmade by another version of their stage, a new run makes them again: {', '.join(old)}")
    for step in run.steps:
        if step["state"] == runs.FAILED:
            log = runs.log_path(place, name, step["name"])
            screen.say("\n".join([f"\nlast lines of {log}:", *(f"    {line}" for line in runs.tail(log, 10))]))
            screen.say(f"all of it:{command(place, 'logs', name, step['name'])}")
    _say_what_next(place, run)
    return 0


def _say_what_next(place: Path, run: runs.Run) -> None:
    """Where its report is, and the command that fits how the run stands."""
    kept_engine.tell(place)
    written, outcome = runs.folder(place, run.name) / "report.md", runs.outcome(place, run)
    if written.exists():
        screen.say(f"\nreport: {written}")
    if outcome == runs.RUNNING:
        screen.say(f"\nwatch it with:{command(place, 'logs', run.name, '-f')}")
    elif outcome in (runs.FAILED, runs.INTERRUPTED, runs.STALE):
        screen.say(f"\ngo on with:{command(place, 'run', f'run={run.name}')}")


def _of_another_version(artifact: store.Artifact) -> bool:
    """Whether today's code would not make this artifact: its stage has another version, or is gone."""
    try:
        return bool(stage.load(artifact.kind).version != artifact.manifest["version"])
    except UserError:
        return True


def _all_runs(place: Path) -> int:
    names = runs.names(place)
    if not names:
        screen.say(f"no run in {place} yet; start one with:{command(place, 'run', 'recipe=pco')}")
        return 0
    rows, damaged = [], []
    for name in names:
        try:
            run = runs.load(place, name)
        except UserError as error:
            rows.append([name, "", "", "damaged", "", ""])
            damaged += error.problems
            continue
        assert run is not None
        finished = sum(s["state"] in ("done", "cached") for s in run.steps)
        changed = (runs.folder(place, name) / "run.json").stat().st_mtime
        choices = run.config.get("choices") or {}
        rows.append([name, choices.get("recipe", ""), choices.get("data", ""), runs.outcome(place, run),
                     f"{finished}/{len(run.steps)}", f"{screen.age(time.time() - changed)} ago"])
    screen.table(f"runs in {place}", ["run", "recipe", "data", "state", "steps", "changed"], rows,
                 spare=("data", "recipe"))
    for problem in damaged:
        screen.say(f"damaged: {problem}")
    kept_engine.tell(place)
    return 0


def verify(workspace: str, name: str | None) -> int:
    """Check every hash of every artifact, or of one run's. Exit code 1 if anything is damaged."""
    place = folder_of(workspace)
    wanted = None if name is None else {(s["stage"], s["key"]) for s in load_run(place, name).steps if s.get("key")}
    problems, hashed, number, unsealed = [], 0, 0, 0
    for manifest in sorted((place / "artifacts").glob(f"*/*/{store.MANIFEST}")):
        kind, key = manifest.parent.parent.name, manifest.parent.name
        if key.startswith(".") or (wanted is not None and (kind, key) not in wanted):
            continue
        number += 1
        try:
            artifact = store.Artifact(kind, key, manifest.parent, files.parsed(manifest.read_bytes()))
            problems += store.damage(artifact)
            hashed += len(artifact.manifest["files"])
            unsealed += store.SEAL not in artifact.manifest
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(f"{manifest}: not a manifest ({error})")
    for problem in problems:
        screen.say(f"damaged: {problem}")
    if problems:
        screen.say("remove the artifact's folder and run again: only that artifact is rebuilt; later steps rerun "
                   "only if its bytes change")
    if unsealed:
        screen.say(f"{unsealed} of them were made by older code: only their files are checked, their manifests "
                   "carry no hash of their own")
    screen.say(f"{number} artifacts, {hashed} files, {len(problems)} problems")
    return 1 if problems else 0


def collect(workspace: str, apply: bool) -> int:
    """Say what no run needs any more and what it would free; remove it only when asked to."""
    place = folder_of(workspace)
    garbage = gc.find_garbage(place)
    for folder in gc.unreadable(place):
        screen.say(f"damaged: {folder / 'run.json'} does not say what the run needs, so no finished artifact is "
                   "removed; move the folder away, then collect again")
    if not garbage:
        screen.say("nothing to remove: every artifact belongs to a run")
        return 0
    rows = [[str(item.path.relative_to(place)), screen.size(item.size), item.reason] for item in garbage]
    screen.table("", ["folder", "size", "why"], rows)
    if apply:
        screen.say(f"freed {screen.size(gc.remove(place, garbage))}")
    else:
        total = screen.size(sum(item.size for item in garbage))
        screen.say(f"would free {total}; remove it with:{command(place, 'gc', '--apply')}")
    return 0


def folder_of(text: str) -> Path:
    """The workspace's folder. UserError where there is none, but for the usual one, which a first run makes."""
    place = Path(text).expanduser().resolve()
    if not place.is_dir() and text != "workspace":
        raise UserError(f"workspace: no folder {place}")
    return place


def load_run(place: Path, name: str, asked_by: str = "run") -> runs.Run:
    """The run's record. UserError, naming those of a similar name, where there is none."""
    run = runs.load(place, name) if runs.NAME.match(name) else None
    if run is None:
        raise UserError(f"{asked_by}: no run named {name!r} in {place}{nearest(name, runs.names(place))}")
    return run


def explain(step: str, overrides: list[str]) -> int:
    """Compare what the step's key is made of now with the artifact of the same stage that is most like it."""
    from flows.prepare import prepare  # brings Hydra, which `align status` does without

    prepared = prepare(overrides)
    planned = {item.step.name: item for item in plan.look_up_all(prepared.workspace, prepared.steps)}
    if step not in planned:
        raise UserError(f"{step}: the run has no such step{nearest(step, planned)}")
    item = planned[step]
    if item.key is None:
        waiting = [str(r) for refs in item.step.inputs.values() for r in refs if not planned[r.step].cached]
        if not waiting:
            screen.say(f"{step} has no key yet: its files are large, and hashed when it runs")
            return 0
        screen.say(f"{step} has no key yet: its inputs {', '.join(waiting)} do not exist")
        for name in dict.fromkeys(w.partition("/")[0] for w in waiting):
            screen.say(f"look there first:{command(prepared.workspace, 'explain', name, f'run={prepared.run.name}')}")
        return 0
    done = {name: other.artifact for name, other in planned.items() if other.artifact is not None}
    now = plan.key_parts(prepared.workspace, item.step, done)
    if item.artifact is not None:
        screen.say(f"{step} is up to date: {item.step.stage}/{item.key}, "
                    f"made by run {item.artifact.manifest['run']!r} as {item.artifact.manifest['step']!r}")
    others = [a for a in store.artifacts(prepared.workspace) if a.kind == item.step.stage and a.key != item.key]
    if not others:
        screen.say(f"no other {item.step.stage} artifact to compare with"
                    + ("" if item.cached else ": it was never made"))
        return 0
    differences = {a.key: key_differences(now, a.manifest) for a in others}
    best = min(others, key=lambda a: (len(differences[a.key]), -a.manifest["created"]))
    rows = [[name, repr(old), repr(new)] for name, old, new in differences[best.key]]
    title = (f"{step} against the nearest {item.step.stage} artifact, {best.key} "
             f"({best.manifest['run']}: {best.manifest['step']})")
    screen.table(title, ["field", "there", "here"], rows)
    return 0


def key_differences(mine: Mapping[str, Any], others: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(field, there, here) of what two artifacts' keys are made of and do not share; mine, others: of manifests."""
    parts = ("version", "settings", "inputs", "seed")
    here, there = (flat(json.loads(files.canonical({k: of.get(k) for k in parts}))) for of in (mine, others))
    names = sorted(here.keys() | there.keys())
    return [(n, there.get(n, "absent"), here.get(n, "absent")) for n in names if here.get(n) != there.get(n)]


def compared(config: dict[str, Any], free: tuple[str, ...]) -> dict[str, Any]:
    """A configuration without the keys `free`, what says how a stage is run, how many servers the devices have, and
    the new prompts a run went on with.
    """
    stages = {name: {k: v for k, v in (node or {}).items() if k != "runtime"}
              for name, node in (config.get("stage") or {}).items()}
    engine = {k: v for k, v in (config.get("engine") or {}).items() if k not in ("replicas", "keep_seconds")}
    data = {k: v for k, v in (config.get("data") or {}).items() if k != "added"}
    kept = {k: v for k, v in config.items() if k not in free}
    return {**kept, "engine": engine, "stage": stages, "data": data, "recipe": weekly.without(config.get("recipe"))}
