"""All that the page writes, and it lies in the run's folder, never in an artifact:

    about.json           {"tags": [...], "note": "...", "archived": false}, of the run
    sample-notes.json    {step: {prompt's id: {"labels": [...], "note": "..."}}}, of its samples
"""

import json
from typing import Any

from flows.dashboard.facts import Row
from flows.dashboard.files import STEP, Files
from pipeline import files as on_disk

_TAG, _TAGS, _NOTE = 40, 20, 4000  # most characters of a tag, tags, characters of a note
_EMPTY = {"tags": [], "note": "", "archived": False}


class Refused(Exception):
    """What was sent is not what can be kept; the text says why."""


def about(files: Files, name: str) -> Row:
    """What somebody wrote of a run; the empty one where nobody did."""
    found = files.json(files.run_path(name, "about.json"))
    return {**_EMPTY, **found} if isinstance(found, dict) else dict(_EMPTY)


def sample_notes(files: Files, name: str, step: str) -> dict[str, Row]:
    """Prompt's id -> its labels and note, of the samples of a step."""
    found = files.json(files.run_path(name, "sample-notes.json"))
    return dict(found[step]) if isinstance(found, dict) and isinstance(found.get(step), dict) else {}


def write_about(files: Files, name: str, body: Row) -> Row:
    """Keep the tags, the note or whether the run is archived: those of them that are sent."""
    files.run(name)
    known = about(files, name)
    if "tags" in body:
        known["tags"] = _tags(body["tags"])
    if "note" in body:
        known["note"] = _text(body["note"])
    if "archived" in body:
        known["archived"] = body["archived"] is True
    on_disk.write_atomic(files.run_path(name, "about.json"), json.dumps(known, indent=1))
    return known


def write_sample_note(files: Files, name: str, body: Row) -> Row:
    """Keep the labels and the note of one prompt of a step; empty ones take them away."""
    files.run(name)
    step, prompt = body.get("step"), body.get("id")
    if not (isinstance(step, str) and STEP.match(step) and isinstance(prompt, str) and 0 < len(prompt) <= 512):
        raise Refused("expected the step and the id of a prompt")
    path = files.run_path(name, "sample-notes.json")
    known = files.json(path)
    known = {**known} if isinstance(known, dict) else {}
    kept = {"labels": _tags(body.get("labels", [])), "note": _text(body.get("note", ""))}
    known[step] = {**known.get(step, {}), prompt: kept}
    if not (kept["labels"] or kept["note"]):
        del known[step][prompt]
    on_disk.write_atomic(path, json.dumps(known, indent=1))
    return kept


def _tags(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise Refused("tags: expected a list of texts")
    found = list(dict.fromkeys(one.strip() for one in value if one.strip()))
    if len(found) > _TAGS or any(len(one) > _TAG for one in found):
        raise Refused(f"tags: expected at most {_TAGS} of at most {_TAG} characters")
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _NOTE:
        raise Refused(f"note: expected a text of at most {_NOTE} characters")
    return value


# Path below /api -> what keeps it.
WRITES = {"runs/{name}/about": write_about, "runs/{name}/sample-note": write_sample_note}
