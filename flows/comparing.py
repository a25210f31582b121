"""`align compare RUN RUN ...`: runs side by side, seeds of one setting as one line with mean and standard deviation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flows import screen
from pipeline import files, report, runs
from pipeline.errors import UserError, nearest

_FREE = ("run", "seed", "workspace", "iterations", "hardware", "tracking", "choices")  # may differ within a line
_COLUMNS = ["settings", "seeds", "iteration", *report.COMPARED.values()]


def compare(words: list[str]) -> int:
    """Print the table of the runs named by `words` (and workspace=FOLDER) and return exit code 0.

    Raises UserError for a run that is not there or has no report yet, and for two that are the same.
    """
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    unknown = [f"{key}: unknown here, expected names or workspace=FOLDER" for key in settings if key != "workspace"]
    if unknown:
        raise UserError(*unknown)
    workspace = Path(settings["workspace"] if settings else "workspace").expanduser().resolve()
    names = [word for word in words if "=" not in word]
    found = [_load(workspace, name) for name in names]
    groups: dict[str, list[tuple[runs.Run, list[dict[str, Any]]]]] = {}
    for run, rows in found:
        groups.setdefault(_settings(run), []).append((run, rows))
    body = []
    for same in groups.values():
        label = " ".join(o for o in same[0][0].overrides if o.partition("=")[0] not in _FREE)
        seeds = [str(run.config["seed"]) for run, _ in same]
        if len(set(seeds)) < len(seeds):
            twice = ", ".join(run.name for run, _ in same)
            raise UserError(f"compare: {twice} differ in nothing, not even the seed; name one of each")
        for line in report.over_seeds([rows for _, rows in same]):
            numbers = [_cell(line[key]) for key in report.COMPARED]
            body.append([label, ", ".join(seeds), str(line["iteration"]), *numbers])
    screen.table("mean ± standard deviation over seeds", _COLUMNS, body)
    return 0


def _load(workspace: Path, name: str) -> tuple[runs.Run, list[dict[str, Any]]]:
    run = runs.load(workspace, name)
    if run is None:
        raise UserError(f"compare: no run named {name!r} in {workspace}{nearest(name, runs.names(workspace))}")
    path = runs.folder(workspace, name) / "report.json"
    if not path.exists():
        raise UserError(f"compare: {name} has no report yet, it is {runs.outcome(workspace, run)}; finish it with: "
                        f"align run run={name}")
    return run, json.loads(path.read_text())["iterations"]


def _settings(run: runs.Run) -> str:
    """Equal for two runs that differ in nothing but the seed and what cannot change a result."""
    return files.canonical({key: value for key, value in run.config.items() if key not in _FREE})


def _cell(found: tuple[float, float, int] | None) -> str:
    if found is None:
        return ""
    mean, sd, seeds = found
    return f"{mean:.3f} ± {sd:.3f}" if seeds > 1 else f"{mean:.3f}"
