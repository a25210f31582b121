"""What was read of a run's data, in short: shapes of rows, what is left out, keys that nothing reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import outside
from pipeline.plan import Planned

SPLITS = ("sft", "pref", "unlabeled", "eval")
_AS, _UNREAD, _LEFT, _RIGHT, _KEPT = "read as ", "unread: ", "left out: ", "put right: ", "kept: "


def notes(workspace: Path, planned: list[Planned]) -> list[str]:
    """Of every step that imports: from its manifest, else from what planning has counted, which reads no row twice."""
    return [line for item in planned if item.step.stage in outside.IMPORTS for line in (
        _lines(outside.foreseen(workspace, item.step), item.step.iteration) if item.artifact is None
        else lines_of(item.artifact.manifest, item.step.iteration))]


def lines_of(manifest: Mapping[str, Any], iteration: int) -> list[str]:
    """Of an import that is done."""
    left_out = {f"{_LEFT}{reason}": number for reason, number in manifest["dropped"].items()}
    return _lines({**manifest["counts"], **left_out}, iteration)


def _lines(counts: dict[str, int], iteration: int = 0) -> list[str]:
    """Of what a run begins with (iteration 0), or of the new prompts of an iteration."""
    found, data = [], f"data.new, iteration {iteration}" if iteration else "data"
    if "rows" in counts:
        splits = ", ".join(f"{split} {counts[split]}" for split in SPLITS if split in counts)
        found.append(f"{data}: {counts['rows']} rows, read as: {_listed(counts, _AS)}; kept: {splits}")
        if left := _listed(counts, _LEFT):
            found.append(f"{data}: left out: {left}")
    if right := _listed(counts, _RIGHT):
        found.append(f"{data}: put right: {right}")
    if kept := _listed(counts, _KEPT):
        found.append(f"{data}: kept with data.format.ties=keep: {kept}")
    if unread := _listed(counts, _UNREAD):
        found.append(f"{data}: keys not read: {unread}")
    if iteration and counts.get("pref"):
        found.append(f"{data}: its {counts['pref']} preferences are trained on from this iteration on; of other rows "
                     "only the prompts are read")
    elif iteration and any(key.startswith(_AS) and key != f"{_AS}prompts" for key in counts):
        found.append(f"{data}: only the prompts of these rows are read, no answers")
    return found


def _listed(counts: dict[str, int], start: str) -> str:
    """ "pairs (962), prompts (3)": the most first."""
    named = sorted(((key.removeprefix(start), n) for key, n in counts.items() if key.startswith(start)),
                   key=lambda one: (-one[1], one[0]))
    return ", ".join(f"{name} ({number})" for name, number in named)
