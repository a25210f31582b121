"""Judgments in Arena-Hard's format: one {question_id, model, games: [{score, user_prompt}, {...}]} a line.

`score` compares A with B: "A>>B", "A>B", "A=B", "B>A", "B>>A" (or turned round, "A<B"). Game 1 shows the baseline as A
and the model as B, game 2 the other way round. As in Arena-Hard a strong verdict weighs `strong` times a weak one, a
game without a verdict nothing. Where a game has the prompt its judge read, both answers compared must be in it, on
lines of their own.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import statistics
from pipeline.config import setting
from pipeline.errors import Problems, UserError
from pipeline.formats import lines
from pipeline.formats.contract import Asked, Judgments
from pipeline.records import Completion

EXPECTED = "a .jsonl file of Arena-Hard judgments ({question_id, games} a line)"
_FOR_A = {"A>>B": 2, "A>B": 1, "A=B": 0, "B=A": 0, "B>A": -1, "B>>A": -2, "B<<A": 2, "B<A": 1, "A<B": -1, "A<<B": -2}


@dataclass(frozen=True)
class Settings:
    """Where the judgments are, and how much a strong verdict counts."""

    path: str
    model: str | None = None  # where the file judges several models
    strong: int = setting(3, low=1)  # votes of a >> verdict

    def check(self) -> list[tuple[str, str]]:
        return [] if Path(self.path).is_file() else [("path", f"{self.path} is not a file, expected {EXPECTED}")]


@dataclass(frozen=True)
class Judged:
    """The verdicts on one question: a vote each, 1, 0.5 or 0 for the policy, and the prompts the judge read."""

    votes: list[float]
    prompts: list[str]

    def is_of(self, ours: Completion, theirs: Completion) -> bool:
        """Whether nothing says that the judge read other answers."""
        texts = [completion.text.strip() for completion in (ours, theirs)]
        return all(text and _on_lines_of_its_own(text, prompt) for prompt in self.prompts for text in texts)


def _on_lines_of_its_own(text: str, prompt: str) -> bool:
    """Whether the prompt has the text as whole lines: "Yes" is no part of the answer "Yes, it is."."""
    return re.search(rf"(?:^|\n)\s*{re.escape(text)}\s*(?:\n|$)", prompt) is not None


def files(settings: Settings) -> list[Path]:
    """The one file that is read."""
    return [Path(settings.path)]


def preferences(asked: Asked, settings: Settings) -> tuple[list[float | None], dict[str, int]]:
    """Of every (prompt, policy's answer, baseline's): the share of its two games' votes for the policy, in [0, 1].

    Ties count half. None where there is no verdict on these two answers; how many by reason is the second value. Raises
    UserError naming every row that is no judgment, for a file of several models, and for several answers to a question
    whose judgment does not say which of them it is about.
    """
    found, reasons = _verdicts(asked, settings)
    return [None if one is None else statistics.mean(one.votes) for one in found], reasons


def published(asked: Asked, settings: Settings, seed: int, resamples: int, confidence: float) -> dict[str, Any]:
    """The score as Arena-Hard states it (Li et al. 2024): the share of all votes for the policy, whichever question.

    A question with strong verdicts has more votes and so more weight than in `preferences`. Against one baseline this
    share is the win rate of the Bradley-Terry fit. The interval is the bootstrap over single votes, as theirs is.
    """
    votes = [vote for one in _verdicts(asked, settings)[0] if one is not None for vote in one.votes]
    low, high = statistics.bootstrap(votes, seed, resamples, confidence)
    return {"name": "Arena-Hard", "win_rate": statistics.mean(votes), "low": low, "high": high, "votes": len(votes),
            "strong": settings.strong}


def _verdicts(asked: Asked, settings: Settings) -> tuple[list[Judged | None], dict[str, int]]:
    """The verdicts on each comparison, None where there are none, and how many have none by reason."""
    judged = _read(settings)
    reasons = {"without a judgment": 0, "judged with other answers": 0}
    seen: set[str] = set()
    found: list[Judged | None] = []
    for group, ours, theirs in asked:
        one = judged.get(group.id)
        if one is not None and not one.prompts and group.id in seen:
            raise UserError(f"evaluation.judgments: question {group.id!r} has several answers and {settings.path} does "
                            "not say (games[].user_prompt) which was judged; sample one with evaluation.sampling.n=1")
        seen.add(group.id)
        found.append(one if one is not None and one.is_of(ours, theirs) else None)
        if found[-1] is None:
            reasons["without a judgment" if one is None else "judged with other answers"] += 1
    return found, reasons


def _read(settings: Settings) -> dict[str, Judged]:
    """{question id: its verdicts}, questions without any left out."""
    problems = Problems()
    found: dict[str, Judged] = {}
    for row in lines.of_one_model(settings.path, settings.model, "model", problems):
        name = str(row.data.get("question_id"))
        with lines.reported(row, problems):
            one = _judged(row.data, settings.strong)
            if name in found:
                raise ValueError(f"question_id {name!r} is there twice")
            if one.votes:
                found[name] = one
    problems.stop()
    return found


def _judged(data: dict[str, Any], strong: int) -> Judged:
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
        votes += [0.5 if ours == 0 else float(ours > 0)] * (strong if abs(ours) == 2 else 1)
    prompts = [game["user_prompt"] for game in games if isinstance(game.get("user_prompt"), str)]
    return Judged(votes, prompts)


JUDGMENTS = Judgments(Settings, files, preferences, published=published)
