"""What stages find in files from outside: looked at when planning, once for the same files.

Nothing of it is read again while the files are as they were, which their place, size and time of change tell.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import store

if TYPE_CHECKING:
    from pipeline.plan import Step


IMPORTS = ("import_data", "import_prompts")  # stages that read rows


def checked(workspace: Path, step: Step) -> tuple[list[str], dict[str, int]]:
    """What the stage's own check finds and counts."""
    stage = step.plugin
    files = stage.files(step.settings, step.runtime)

    def check() -> tuple[list[str], dict[str, int]]:
        see = stage.foresee
        return (stage.check(step.settings, step.runtime), {}) if see is None else see(step.settings, step.runtime)

    if not files and not stage.sources(step.settings, step.runtime):
        return check()
    return store.checked(workspace, _of(step), files, check)


def foreseen(workspace: Path, step: Step) -> dict[str, int]:
    """What a step that has not run will count, as far as its files tell; empty where they tell nothing."""
    return {} if step.plugin.foresee is None else checked(workspace, step)[1]


def lacking(workspace: Path, step: Step, wanted: dict[str, str]) -> list[str]:
    """What other steps want of the data that it does not hold. wanted: what -> why and the way out (Stage.wants)."""
    stage = step.plugin
    return store.checked(workspace, [*_of(step), "lacks", *sorted(wanted)], stage.files(step.settings, step.runtime),
                         lambda: (stage.lacks(step.settings, step.runtime, wanted), {}))[0]


def _of(step: Step) -> list[Any]:
    stage = step.plugin
    return [step.stage, stage.version, dataclasses.asdict(step.settings), dataclasses.asdict(step.runtime)]
