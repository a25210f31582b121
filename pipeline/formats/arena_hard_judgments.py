"""Judgments in Arena-Hard's format: one {question_id, model, games: [{score}, {score}]} a line.

`score` compares A with B: "A>>B", "A>B", "A=B", "B>A", "B>>A". Game 1 shows the baseline as A and the model as B, game
2 the other way round. As in Arena-Hard a strong verdict weighs `strong` times a weak one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.build import setting
from pipeline.formats import lines
from pipeline.records import Group, UserError

EXPECTED = "a .jsonl file of Arena-Hard judgments ({question_id, games} a line)"
_FOR_A = {"A>>B": 2, "A>B": 1, "A=B": 0, "B=A": 0, "B>A": -1, "B>>A": -2}


@dataclass(frozen=True)
class Settings:
    """Where the judgments are, and how much a strong verdict counts."""

    path: str
    model: str | None = None  # where the file judges several models
    strong: int = setting(3, low=1)  # votes of a >> verdict

    def check(self) -> list[tuple[str, str]]:
        return [] if Path(self.path).is_file() else [("path", f"{self.path} is not a file, expected {EXPECTED}")]


def files(settings: Settings) -> list[Path]:
    """The one file that is read."""
    return [Path(settings.path)]


def preferences(groups: dict[str, Group], settings: Settings) -> dict[str, float]:
    """{question id: share of the votes of its two games for the policy, ties half, in [0, 1]}.

    A game without a verdict is left out, a question without any too. Raises UserError naming every row that is no
    judgment, and a file of several models.
    """
    problems: list[str] = []
    found: dict[str, float] = {}
    models: set[str] = set()
    for row in lines.rows(files(settings), problems):
        model = str(row.data.get("model"))
        if settings.model not in (None, model):
            continue
        models.add(model)
        try:
            votes = _votes(row.data, settings.strong)
        except ValueError as error:
            problems.append(f"{row.where}: {error}")
            continue
        name = str(row.data.get("question_id"))
        if votes and name in groups:
            found[name] = sum(votes) / len(votes)
    lines.stop_on(problems)
    if len(models) > 1:
        raise UserError(f"evaluation.judgments.model: {settings.path} judges {', '.join(sorted(models))}; name one")
    return found


def _votes(data: dict[str, Any], strong: int) -> list[float]:
    """One 1, 0 or 0.5 per vote for the policy."""
    games = data.get("games")
    if not isinstance(games, list) or not all(isinstance(game, dict) for game in games):
        raise ValueError(f"games: {str(games)[:60]}, expected a list of two {{score}}")
    votes: list[float] = []
    for number, game in enumerate(games):
        score = game.get("score")
        if score is None:
            continue
        if score not in _FOR_A:
            raise ValueError(f"games[{number}].score: {score!r}, expected one of {', '.join(_FOR_A)}")
        ours = _FOR_A[score] if number % 2 else -_FOR_A[score]
        weight = strong if abs(ours) == 2 else 1
        votes += [0.5 if ours == 0 else float(ours > 0)] * weight
    return votes
