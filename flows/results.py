"""What stands behind a step in one line: the numbers its stage tells, the same when it is done, cached or looked up."""

from collections.abc import Mapping
from typing import Any

from flows.screen import brief
from pipeline import stage, store
from pipeline.errors import UserError


def of(artifact: store.Artifact) -> str:
    """Its stage's words for its counts, then which rows were left out and why, the most first."""
    counts, says, unsaid = _numbers(artifact.manifest["counts"]), None, ""
    try:
        kind = stage.load(artifact.kind)
        says, unsaid = kind.says, kind.unsaid
    except UserError:  # of a stage that is no more
        pass
    told = says(counts) if says else []
    lost = sorted(_numbers(artifact.manifest["dropped"]).items(), key=lambda reason: (-reason[1], reason[0]))
    worth = {name: number for name, number in lost if not (unsaid and name.startswith(unsaid))}
    left_out = f"left out or cut: {brief(worth)}" if worth else ""
    return "; ".join(filter(None, [", ".join(told) or brief(counts), left_out]))


def _numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """What is one: a manifest of older code carries no hash of its own, and may hold anything."""
    return {name: value for name, value in found.items() if isinstance(value, (int, float))}
