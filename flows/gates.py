"""What a gate decided, for the run that obeys it, its record and its last words."""

import json
from dataclasses import replace
from typing import Any

from pipeline import markdown, runs, store
from pipeline.markdown import LEFT, RIGHT
from pipeline.plan import Planned

STOP = "stop"
KIND = "gate"
SKIPPED = "skipped"  # the state of a step that a gate kept from running


def read(artifact: store.Artifact) -> dict[str, Any] | None:
    """The content of gate.json; None for another kind of artifact."""
    return json.loads((artifact.path / "gate.json").read_text()) if artifact.kind == KIND else None


def reachable(planned: list[Planned]) -> list[Planned]:
    """The steps up to the first gate known to stop the run: all, where there is none."""
    for i, item in enumerate(planned, 1):
        decision = read(item.artifact) if item.artifact is not None else None
        if decision is not None and decision["decision"] == STOP:
            return planned[:i]
    return planned


def lines(step: str, decision: dict[str, Any]) -> list[str]:
    """What the terminal says of a decision: nothing of a pass whose rules could all be decided."""
    doubts = [f"  {step}: {why}" for why in decision["undecided"]]
    if not decision["reasons"]:
        return doubts
    origin = f"iteration {decision['goes_on_from']}" if decision["goes_on_from"] else "the model the loop began with"
    follows = "the run stops here" if decision["decision"] == STOP else "it is set aside"
    return [*doubts, f"  {step}: {'; '.join(decision['reasons'])}",
            f"  {step}: {follows}; the model to go on from is {origin}"]


def ended(run: runs.Run, stopped_by: str) -> runs.Run:
    """The record of a run whose steps are done, or were kept from running by a gate."""
    names = [step["name"] for step in run.steps]
    position = names.index(stopped_by) if stopped_by else len(names)
    if position >= len(names) - 1:  # a gate behind the last step keeps nothing from running
        return replace(run, outcome=runs.DONE)
    steps = [{**step, "state": SKIPPED} if i > position else step for i, step in enumerate(run.steps)]
    return replace(run, steps=steps, outcome=runs.STOPPED_BY + stopped_by)


def table(run: runs.Run, done: dict[str, store.Artifact]) -> str:
    """Every gate of the run as a Markdown table, "" where it has none."""
    found = [(step["name"], read(done[step["name"]])) for step in run.steps if step["name"] in done]
    columns = {"gate": LEFT, "decision": LEFT, "goes on from iteration": RIGHT, "win rate": LEFT,
               "learned reward": LEFT, "tokens": LEFT, "why": LEFT}
    return markdown.table(columns, [
        (name, gate["decision"], gate["goes_on_from"], _change(gate, "win_rate", ".1%"),
         _change(gate, "learned", ".3f"), _change(gate, "tokens", ".1f"),
         "; ".join([*gate["reasons"], *gate["undecided"]]))
        for name, gate in found if gate is not None])


def _change(gate: dict[str, Any], name: str, form: str) -> str:
    before, now = gate["before"][name], gate["now"][name]
    return "" if before is None or now is None else f"{before:{form}} to {now:{form}}"
