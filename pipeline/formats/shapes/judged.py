"""Two answers and who is better.

    {"instruction", "output_1", "output_2", "preference"}   AlpacaFarm, AlpacaEval's annotations: 1, 2, or in between
    {"input", "output_1", "output_2", "label"}              LLMBar: 1 or 2
    {"instruction", "input", "response1", "response2", "annotator1", ...}   PandaLM: 1, 2, 0 for a tie; the majority
    {"conversation_a", "conversation_b", "winner"}          Chatbot Arena: model_a, model_b, a tie

`scores` are the shares of the verdict for either side. A tie is left out; with data.format.ties=keep the first answer
stands first.
"""

from typing import Any

from pipeline import statistics
from pipeline.formats import turns
from pipeline.formats.contract import Example, Left, Shape
from pipeline.formats.shapes.pairs import DIFFER

TIED, UNJUDGED = "a tie of two answers", "two answers without a verdict"
_SIDES = (("output_1", "output_2"), ("response1", "response2"), ("conversation_a", "conversation_b"))
_WINNER = {"model_a": 0.0, "a": 0.0, "model_b": 1.0, "b": 1.0, "tie": 0.5, "tie (bothbad)": 0.5}


def read(data: dict[str, Any], settings: Any) -> list[Example]:
    keys = next(pair for pair in _SIDES if pair[0] in data)
    second = _share(data)  # of the verdict for the second
    if second == 0.5 and settings.ties == "drop":
        raise Left(TIED)
    sides = [turns.answer(data.get(key), key) for key in keys]
    prompt = turns.prompt(data) or sides[0][:-1]
    if len(sides[0]) > 1 and not turns.same(sides[0][:-1], sides[1][:-1]):
        raise Left(DIFFER)
    both = [(sides[0][-1], 1.0 - second), (sides[1][-1], second)]
    best, other = both if second <= 0.5 else both[::-1]
    return [Example(prompt, [best[0], other[0]], scores=[best[1], other[1]], kept=TIED if second == 0.5 else "")]


def _share(data: dict[str, Any]) -> float:
    """Of the verdict for the second answer, in [0, 1]."""
    if votes := [turns.number(data[key], key) for key in data if key.startswith("annotator") and key[9:].isdigit()]:
        if any(vote not in (0, 1, 2) for vote in votes):
            raise ValueError(f"annotator: {votes}, expected 0 (a tie), 1 or 2")
        return statistics.mean([vote - 1 if vote else 0.5 for vote in votes])
    if "winner" in data:
        found = _WINNER.get(str(data["winner"]))
        if found is None:
            raise ValueError(f"winner: {data['winner']!r}, expected {', '.join(_WINNER)}")
        return found
    key = "preference" if "preference" in data else "label"
    if data[key] is None:
        raise Left(UNJUDGED)
    value = turns.number(data[key], key)
    if not 1 <= value <= 2:
        raise ValueError(f"{key}: {data[key]!r}, expected a number from 1 (the first answer) to 2 (the second)")
    return value - 1


SHAPE = Shape("judged pairs", (
    ("output_1", "output_2", "preference"), ("output_1", "output_2", "label"), ("response1", "response2", "annotator1"),
    ("conversation_a", "conversation_b", "winner")), read,
    reads=("instruction", *turns.PROMPTS, "annotator2", "annotator3"))
