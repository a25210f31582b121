"""Judgments in AlpacaEval's annotation format: a list of {instruction, output_1, output_2, generator_2, preference}.

`preference` is the judge's value in [1, 2]: 1 = output_1 preferred, 2 = output_2, 1.5 a tie; older files write a tie
as 0; null is no judgment. Output 2 is the policy's, as AlpacaEval writes them. A prompt is found by its last user turn,
and a verdict holds only for the two outputs it was given on: they must be the answers compared, but for white space
around them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import statistics
from pipeline.errors import Problems
from pipeline.formats import lines
from pipeline.formats.contract import Asked, Judgments

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


def preferences(asked: Asked, settings: Settings) -> tuple[list[float | None], dict[str, int]]:
    """Of every (prompt, policy's answer, baseline's answer): the judge's preference for the policy's, in [0, 1].

    None where no verdict was given on these two answers; how many by reason is the second value. Two answers judged
    twice get the mean. Raises UserError naming every row that is no annotation, and a file of several models.
    """
    judged: dict[str, dict[tuple[str, str], list[float]]] = {}
    problems = Problems()
    for row in lines.of_one_model(settings.path, settings.model, "generator_2", problems):
        texts = [row.data.get(name) for name in ("instruction", "output_1", "output_2")]
        value = preference(row.data.get("preference"))
        unjudged = "preference" in row.data and row.data["preference"] is None
        if (value is None and not unjudged) or not all(isinstance(text, str) for text in texts):
            problems.add(f"{row.where}: preference {row.data.get('preference')!r} of instruction "
                            f"{str(texts[0])[:40]!r}, expected texts as instruction, output_1 and output_2, and a "
                            "number from 1 to 2 (null: no judgment)")
            continue
        if value is None:
            continue
        instruction, output_1, output_2 = (str(text).strip() for text in texts)
        judged.setdefault(instruction, {}).setdefault((output_2, output_1), []).append(value)
    problems.stop()
    reasons = {"without a judgment": 0, "judged with other answers": 0}
    found: list[float | None] = []
    for group, ours, theirs in asked:
        of_prompt = judged.get(group.messages[-1].content.strip())
        values = (of_prompt or {}).get((ours.text.strip(), theirs.text.strip()))
        found.append(None if values is None else statistics.mean(values))
        if values is None:
            reasons["without a judgment" if of_prompt is None else "judged with other answers"] += 1
    return found, reasons


def preference(value: Any) -> float | None:
    """AlpacaEval's value as a preference in [0, 1] for output 2; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if value == 0:  # how older annotators write a tie
        return 0.5
    return float(value) - 1 if 1 <= value <= 2 else None


JUDGMENTS = Judgments(Settings, files, preferences)
