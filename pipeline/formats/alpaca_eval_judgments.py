"""Judgments in AlpacaEval's annotation format: a JSON list of {instruction, generator_1, generator_2, preference, ...}.

`preference` is the judge's value in [1, 2]: 1 = output_1 preferred, 2 = output_2, 1.5 a tie; older files write a tie as
0. Output 2 is the policy's, as AlpacaEval writes them. A prompt is found by its last user turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import statistics
from pipeline.formats import lines
from pipeline.records import Group, UserError

EXPECTED = "a .json file with a list of AlpacaEval annotations"


@dataclass(frozen=True)
class Settings:
    """Where the judgments are."""

    path: str
    model: str | None = None  # generator_2, where the file judges several models

    def check(self) -> list[tuple[str, str]]:
        return [] if Path(self.path).is_file() else [("path", f"{self.path} is not a file, expected {EXPECTED}")]


def files(settings: Settings) -> list[Path]:
    """The one file that is read."""
    return [Path(settings.path)]


def preferences(groups: dict[str, Group], settings: Settings) -> dict[str, float]:
    """{prompt id: preference of the policy's answer, in [0, 1]}; a prompt judged twice gets the mean.

    Raises UserError naming every row without instruction or readable preference, and a file of several models.
    """
    by_text = {group.messages[-1].content.strip(): name for name, group in groups.items()}
    problems: list[str] = []
    found: dict[str, list[float]] = {}
    models: set[str] = set()
    for row in lines.rows(files(settings), problems):
        model = str(row.data.get("generator_2"))
        if settings.model not in (None, model):
            continue
        models.add(model)
        instruction, value = row.data.get("instruction"), preference(row.data.get("preference"))
        if not isinstance(instruction, str) or value is None:
            problems.append(f"{row.where}: preference {row.data.get('preference')!r} of instruction "
                            f"{str(instruction)[:40]!r}, expected a text and a number from 1 to 2")
        elif instruction.strip() in by_text:
            found.setdefault(by_text[instruction.strip()], []).append(value)
    lines.stop_on(problems)
    if len(models) > 1:
        raise UserError(f"evaluation.judgments.model: {settings.path} judges {', '.join(sorted(models))}; name one")
    return {name: statistics.mean(values) for name, values in found.items()}


def preference(value: Any) -> float | None:
    """AlpacaEval's value as a preference in [0, 1] for output 2; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if value == 0:  # how older annotators write a tie
        return 0.5
    return float(value) - 1 if 1 <= value <= 2 else None
