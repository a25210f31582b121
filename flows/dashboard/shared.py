"""Which artifacts several runs share: every run's steps by the artifact they came to, and what each was made of."""

from flows.dashboard.compared import MOST
from flows.dashboard.facts import Row
from flows.dashboard.files import Files


def shared(files: Files, names: list[str]) -> Row:
    """{"runs": names, alike ones side by side; "steps": their names in running order; "artifacts": [{step, stage, key,
    runs: places in "runs", made_by, seconds, reads: places in "artifacts"}], "seconds": of work, "saved": that it would
    have been without the store}.

    A step that has no finished artifact is left out.
    """
    records = [files.run(name) for name in dict.fromkeys(names[:MOST])]
    steps = {record["name"]: {s["name"]: s for s in record["steps"] if _done(files, s)} for record in records}
    ranks = {run: {name: i for i, name in enumerate(own)} for run, own in steps.items()}
    order = sorted({name for own in ranks.values() for name in own},
                   key=lambda name: (max(own.get(name, 0) for own in ranks.values()), name))
    marks = dict.fromkeys(s["key"] for own in steps.values() for s in own.values())
    first = {mark: i for i, mark in enumerate(marks)}  # so that runs stay as they were named where nothing is shared
    listed = sorted(steps, key=lambda run: [first[steps[run][name]["key"]] if name in steps[run] else len(first)
                                            for name in order])
    places: dict[tuple[str, str], int] = {}
    artifacts: list[Row] = []
    for at, run in enumerate(listed):
        for name, step in steps[run].items():
            mark = step["stage"], step["key"]
            if mark not in places:
                manifest = files.manifest(*mark) or {}
                places[mark] = len(artifacts)
                artifacts.append({"step": name, "stage": mark[0], "key": mark[1], "runs": [], "reads": [],
                                  "made_by": manifest.get("run"), "seconds": manifest.get("process_seconds", 0.0)})
            found = artifacts[places[mark]]
            found["runs"].append(at)
            reads = (steps[run].get(ref.partition("/")[0]) for ref in step.get("inputs", []))
            found["reads"] = found["reads"] or sorted({places[s["stage"], s["key"]] for s in reads if s is not None})
    return {"runs": listed, "steps": order, "artifacts": artifacts, "seconds": sum(a["seconds"] for a in artifacts),
            "saved": sum(a["seconds"] * (len(a["runs"]) - 1) for a in artifacts)}


def _done(files: Files, step: Row) -> bool:
    return step["state"] in ("done", "cached") and files.manifest(step["stage"], step.get("key")) is not None
