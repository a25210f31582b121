"""`align explain STEP`: why a step is stale or was rebuilt, field by field against the nearest artifact."""

from __future__ import annotations

from typing import Any

from flows import screen
from flows.prepare import flat, prepare
from pipeline import plan, store
from pipeline.errors import UserError, nearest


def explain(step: str, overrides: list[str]) -> int:
    """Compare what the step's key is made of now with the artifact of the same stage that is most like it."""
    prepared = prepare(overrides)
    planned = {item.step.name: item for item in plan.look_up_all(prepared.workspace, prepared.steps)}
    if step not in planned:
        raise UserError(f"{step}: the run has no such step{nearest(step, planned)}")
    item = planned[step]
    if item.key is None:
        waiting = [str(r) for refs in item.step.inputs.values() for r in refs if not planned[r.step].cached]
        screen.say(f"{step} has no key yet: its inputs {', '.join(waiting)} do not exist")
        for name in dict.fromkeys(w.partition("/")[0] for w in waiting):
            screen.say(f"look there first: align explain {name} run={prepared.run.name}")
        return 0
    done = {name: other.artifact for name, other in planned.items() if other.artifact is not None}
    now = flat(plan.key_parts(prepared.workspace, item.step, done))
    if item.artifact is not None:
        screen.say(f"{step} is up to date: {item.step.stage}/{item.key}, "
                    f"made by run {item.artifact.manifest['run']!r} as {item.artifact.manifest['step']!r}")
    others = [a for a in store.artifacts(prepared.workspace) if a.kind == item.step.stage and a.key != item.key]
    if not others:
        screen.say(f"no other {item.step.stage} artifact to compare with"
                    + ("" if item.cached else ": it was never made"))
        return 0
    differences = {a.key: _differences(now, _parts(a)) for a in others}
    best = min(others, key=lambda a: (len(differences[a.key]), -a.manifest["created"]))
    rows = [[name, repr(old), repr(new)] for name, old, new in differences[best.key]]
    origin = f"{best.manifest['run']}: {best.manifest['step']}"
    title = f"{step} against the nearest {item.step.stage} artifact, {best.key} ({origin})"
    screen.table(title, ["field", "there", "here"], rows)
    return 0


def _parts(artifact: store.Artifact) -> dict[str, Any]:
    return flat({k: artifact.manifest[k] for k in ("version", "settings", "inputs", "seed")})


def _differences(here: dict[str, Any], there: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    names = sorted(here.keys() | there.keys())
    return [(n, there.get(n, "absent"), here.get(n, "absent")) for n in names if here.get(n) != there.get(n)]
