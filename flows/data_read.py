"""What was read of a run's data, in short: shapes of rows, what is left out, keys that nothing reads."""

from pathlib import Path

from pipeline import outside
from pipeline.plan import Planned

SPLITS = ("sft", "pref", "unlabeled", "eval")
_AS, _UNREAD, _LEFT, _RIGHT = "read as ", "unread: ", "left out: ", "put right: "


def notes(workspace: Path, planned: list[Planned]) -> list[str]:
    """Of every step that imports: from its manifest, else from what planning has counted, which reads no row twice."""
    return [line for item in planned if item.step.stage == "import_data" for line in _lines(_counts(workspace, item))]


def _counts(workspace: Path, item: Planned) -> dict[str, int]:
    if item.artifact is None:
        return outside.foreseen(workspace, item.step)
    manifest = item.artifact.manifest
    return {**manifest["counts"], **{f"{_LEFT}{reason}": number for reason, number in manifest["dropped"].items()}}


def _lines(counts: dict[str, int]) -> list[str]:
    found = []
    if "rows" in counts:
        splits = ", ".join(f"{split} {counts[split]}" for split in SPLITS)
        found.append(f"data: {counts['rows']} rows, read as: {_listed(counts, _AS)}; kept: {splits}")
        if left := _listed(counts, _LEFT):
            found.append(f"data: left out: {left}")
    if right := _listed(counts, _RIGHT):
        found.append(f"data: put right: {right}")
    if unread := _listed(counts, _UNREAD):
        found.append(f"data: keys not read: {unread}")
    return found


def _listed(counts: dict[str, int], start: str) -> str:
    """ "pairs (962), prompts (3)": the most first."""
    named = sorted(((key.removeprefix(start), n) for key, n in counts.items() if key.startswith(start)),
                   key=lambda one: (-one[1], one[0]))
    return ", ".join(f"{name} ({number})" for name, number in named)
