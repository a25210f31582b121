"""AlpacaEval's model_outputs.json: a JSON list of {instruction, output, generator, dataset}, 805 in the original.

The instructions become evaluation prompts with `dataset` as their category; outputs, where there are any, come along as
given answers to compare with. `export` writes answers in the same format, in the same order.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config import setting
from pipeline.errors import Problems, UserError
from pipeline.formats import lines, splits
from pipeline.formats.contract import Format
from pipeline.formats.splits import Imported
from pipeline.records import Completion, Group, Message

EXPECTED = "a model_outputs.json of AlpacaEval (a list of {instruction, output, generator, dataset}), or its folder"


@dataclass(frozen=True)
class Settings:
    """What to read."""

    files: str = "model_outputs*.json"  # glob under the root; it must mean one file
    outputs: str = setting("keep", choices=("keep", "drop"))  # the file's own outputs, as given answers


def files(root: Path, settings: Settings) -> list[Path]:
    """The one file. Raises UserError where there is none, or more than one."""
    found = lines.find(root, settings.files, "data.format.files", EXPECTED)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"data.format.files: {settings.files!r} means {len(found)} files ({names}), expected one; "
                        "name it with data.format.files=NAME")
    return found


def read(root: Path, settings: Settings) -> Imported:
    """Evaluation prompts in the order of the file. Raises UserError with every wrong row."""
    problems = Problems()
    groups: dict[str, Group] = {}
    for row in lines.rows(files(root, settings), problems):
        with lines.reported(row, problems):
            group = _group(row.data, settings)
            if group.id in groups:
                raise ValueError("the same instruction as an earlier row, expected each once")
            groups[group.id] = group
    problems.stop()
    return splits.evaluation(list(groups.values()))


def _group(data: dict[str, Any], settings: Settings) -> Group:
    instruction, output = data.get("instruction"), data.get("output")
    if not isinstance(instruction, str):
        raise ValueError(f"instruction: {instruction!r}, expected a text")
    messages = [Message("user", instruction)]
    if problem := splits.message_problem(messages):
        raise ValueError(f"instruction: {problem}")
    if output is not None and not isinstance(output, str):
        raise ValueError(f"output: {output!r}, expected a text")
    group = splits.group_of(messages, [], None, str(data.get("dataset") or ""), "")  # an id of the prompt alone
    given = (Completion(output),) if output and settings.outputs == "keep" else ()
    return replace(group, completions=given)


def export(groups: Iterable[Group], second: dict[str, Group], model: str, out: Path, settings: Settings) -> int:
    """Write model_outputs.json and return the number of answers. There are no second turns."""
    rows = [{"instruction": g.messages[-1].content, "output": g.completions[0].text, "generator": model,
             "dataset": g.dataset}
            for g in groups]
    (out / "model_outputs.json").write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    return len(rows)


FORMAT = Format(Settings, EXPECTED, files, read, export=export)
