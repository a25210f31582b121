"""What every iteration trained on: where its groups came from, for a run's report."""

import json
from collections.abc import Mapping
from typing import Any

from flows import replays
from pipeline import markdown, runs
from pipeline.markdown import LEFT, RIGHT
from pipeline.store import Artifact

_COLUMNS = {"training": LEFT, "made in": LEFT, "data set": LEFT, "groups": RIGHT, "trained on": RIGHT, "weight": RIGHT,
            "share": RIGHT}


def table(run: runs.Run, done: Mapping[str, Artifact]) -> str:
    """A row for each training and source of a run that replays or got new prompts; of any other run nothing."""
    if (run.config.get("replay") or {}).get("module") is None and not (run.config.get("data") or {}).get("added"):
        return ""
    steps = [step for step in run.steps if step["stage"] == "train_preference" and step["name"] in done]
    return markdown.table(_COLUMNS, [row for step in steps for row in _rows(run, step, done)])


def _rows(run: runs.Run, step: dict[str, Any], done: Mapping[str, Artifact]) -> list[tuple[Any, ...]]:
    replayed = done.get(f"{replays.STEP}[{step['iteration']}]")
    if replayed is not None:
        found = json.loads((replayed.path / "replay.json").read_text())["from"]
        return [(step["name"], _origin(one["iteration"]), one["dataset"], one["groups"], one["kept"],
                 f"{one['weight']:g}", f"{one['share']:.1%}") for one in found]
    tables, counts = runs.groups_of(run.steps, step["name"]), done[step["name"]].manifest["counts"]
    sizes = [int(counts.get(f"from_input_{i}", counts["groups"])) for i in range(len(tables))]
    total = max(1, sum(sizes))
    return [(step["name"], _origin(origin["iteration"]), "", size, size, f"{size:g}", f"{size / total:.1%}")
            for (origin, _), size in zip(tables, sizes, strict=True)]


def _origin(iteration: int) -> str:
    return f"iteration {iteration}" if iteration else "the data set"
