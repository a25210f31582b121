"""Where a number comes from: its artifact, that artifact's inputs, theirs, back to the files of raw data.

And why a step was computed at all: what its key is made of, beside the nearest artifact there was before.
"""


from flows.dashboard import facts
from flows.dashboard.facts import Row
from flows.dashboard.files import STEP, Files, NotHere
from flows.inspection import key_differences
from pipeline import store
from pipeline.config import flat

_MOST_FILES = 200


def lineage(files: Files, name: str, step: str) -> Row:
    """The step and everything upstream of it, nearest first, each with the inputs that tie it to the next."""
    if not STEP.match(step):
        raise NotHere(f"{step!r} is no step's name")
    steps = {s["name"]: s for s in facts.steps_of(files, files.run(name))}
    if step not in steps:
        raise NotHere(f"run {name} has no step {step}")
    above = {s["name"] for s in facts.upstream(list(steps.values()), step)}
    order = [n for n in reversed(steps) if n in above]  # the record is in running order: inputs stand before
    manifest = files.manifest(steps[step]["stage"], steps[step]["key"])
    return {"run": name, "step": step, "chain": [_link(files, steps, n) for n in order],
            "manifest": manifest and _shown(manifest), "rebuilt": _rebuilt(files, manifest)}


def _link(files: Files, steps: dict[str, Row], name: str) -> Row:
    """One artifact: what it was made from (with the digest of each input, and whether it still agrees) and of which raw
    files.
    """
    step = steps[name]
    manifest = files.manifest(step["stage"], step["key"])
    link = {"step": name, "stage": step["stage"], "key": step["key"], "state": step["state"],
            "made_by": step["made_by"], "inputs": [], "raw": [], "created": (manifest or {}).get("created")}
    if manifest is None:
        return link
    link["digest"] = store.tree_digest({f: x["hash"] for f, x in manifest["files"].items()})
    recorded = [d for n, digests in manifest["inputs"].items() if n != "files" for d in digests]
    for i, ref in enumerate(step["inputs"]):
        origin, _, part = ref.partition("/")
        digest = _digest(files, steps.get(origin), part)
        link["inputs"].append({"ref": ref, "step": origin, "digest": digest,
                               "agrees": digest is not None and digest in recorded, "position": i})
    raw = [str(entry).partition(":") for entry in manifest["inputs"].get("files", [])]
    return link | {"raw": [{"file": file, "hash": hashed} for file, _, hashed in raw]}


def _digest(files: Files, step: Row | None, part: str) -> str | None:
    manifest = files.manifest(step["stage"], step["key"]) if step else None
    if manifest is None or step is None:
        return None
    try:
        return store.Artifact(step["stage"], step["key"], files.artifact(step["stage"], step["key"]),
                              manifest).digest(part)
    except KeyError:
        return None


def _shown(manifest: Row) -> Row:
    """The manifest in the order of reading: what made it, the numbers, the settings, the files."""
    listed = sorted(manifest["files"].items())
    return {
        "path": f"artifacts/{manifest['kind']}/{manifest['key']}",
        "about": {k: manifest.get(k) for k in ("kind", "key", "version", "seed", "run", "step", "iteration", "git",
                                               "created", "process_seconds", "peak_memory_mb", "algorithm")},
        "counts": manifest.get("counts", {}), "dropped": manifest.get("dropped", {}),
        "settings": flat(manifest.get("settings", {})), "runtime": flat(manifest.get("runtime", {})),
        "versions": manifest.get("versions", {}),
        "files": [{"file": f, **x} for f, x in listed[:_MOST_FILES]], "number_of_files": len(listed)}


def _rebuilt(files: Files, manifest: Row | None) -> Row:
    """What this artifact's key has in it that the nearest older artifact of its stage has not."""
    if manifest is None:
        return {"reason": "not made yet", "differences": []}
    kind = manifest["kind"]
    made = [files.manifest(kind, p.parent.name) for p in files.path("artifacts", kind).glob(f"*/{store.MANIFEST}")]
    others = [m for m in made if m is not None and m.get("created", 0) < manifest.get("created", 0)]
    if not others:
        return {"reason": f"it is the first {kind} artifact of this workspace", "differences": []}
    compared = [(key_differences(manifest, m), m) for m in others]
    differences, nearest = min(compared, key=lambda pair: (len(pair[0]), -pair[1].get("created", 0)))
    return {"reason": "its key differs from the nearest older artifact of this stage",
            "nearest": {k: nearest.get(k) for k in ("run", "step", "key", "created")},
            "differences": [{"field": field, "there": old, "here": new} for field, old, new in differences]}

