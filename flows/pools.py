"""Whether the data hold as many prompts as the iterations of a run sample from: known before anything runs."""

from pathlib import Path

from pipeline import outside, plan
from pipeline.errors import UserError
from pipeline.plan import Step


def problems(workspace: Path, steps: list[Step]) -> list[str]:
    """The first iteration that would find too few prompts left. Rows that are too long for the model's limits are told
    later, by its own step.
    """
    by_name = {step.name: step for step in steps}
    for step in steps:
        held = _held(workspace, by_name, step) if "prompts" in step.inputs else None
        found = None if held is None else step.plugin.short(step.settings, held)
        if found is not None:
            return [found]
    return []


def _held(workspace: Path, by_name: dict[str, Step], step: Step) -> int | None:
    """Prompts in the data that the step takes its own from; None where they are not known."""
    table = step.inputs["prompts"][0]
    made = by_name.get(table.step)
    data = None if made is None or made.stage != "tokenize" else by_name.get(made.inputs["data"][0].step)
    if data is None or data.stage not in outside.IMPORTS:
        return None
    try:
        artifact = plan.look_up(workspace, data, {}, planning=True).artifact
        counts = outside.foreseen(workspace, data) if artifact is None else artifact.manifest["counts"]
    except (UserError, OSError):  # its own check tells
        return None
    return counts.get(table.part)
