"""Ranked and scored lists: one prompt with several answers, the preferred one first (groups of 1 + M).

    {"prompt", "answers": [{"answer", "rank" | "score", ...}]}                    Nectar, AlpacaEval's candidates
    {"instruction", "completions": [{"response", "overall_score", ...}]}          UltraFeedback's four
    {"prompt", "responses": [texts], "scores" | "ratings" | "ranks": [numbers]}   columns side by side
    {"question", "ground_truth", NAME: {"solution", "is_correct"}, ...}           GSM8K's model solutions

Rank 1 is the best, a larger score the better; where an answer has both, the rank orders. Answers as good as the best
are no worse ones: data.format.ties=drop leaves them out, and the row where none is worse.
"""

from dataclasses import replace
from typing import Any

from pipeline.formats import turns
from pipeline.formats.contract import Example, Left, Shape
from pipeline.formats.shapes import checked
from pipeline.records import Target

LISTS = ("answers", "completions", "responses", "candidates", "generations")
_TEXTS = ("answer", "response", "text", "content", "completion", "output", "solution", "model_response")
_SCORES = ("score", "overall_score", "rating", "reward", "overall_rating", "is_correct")
_RANKS = ("rank", "ranking")
NO_WORSE, FEW = "no answer of the list is worse than the best", "fewer than two answers"
AS_GOOD = "a list with an answer as good as the best"


def read(data: dict[str, Any], settings: Any) -> list[Example]:
    if "ground_truth" in data:
        return [_solutions(data, settings)]
    key = min((key for key in LISTS if key in data), key=lambda key: data[key] is None)
    items = data[key]
    if not isinstance(items, list):
        kind = "null" if items is None else type(items).__name__
        raise ValueError(f"{key}: {kind}, expected a list of answers")
    columns = {plural: data[plural] for name in (*_SCORES, *_RANKS) for plural in (name, f"{name}s")
               if isinstance(data.get(plural), list)}
    if any(len(values) != len(items) for values in columns.values()):
        raise ValueError(f"{key}: {len(items)} answers, but {', '.join(f'{len(v)} {k}' for k, v in columns.items())}")
    answers = [(one if isinstance(one, dict) else {"text": one}) | {name.removesuffix("s"): values[i]
               for name, values in columns.items()} for i, one in enumerate(items)]
    return [ordered(turns.required(data), answers, settings, key)]


def ordered(prompt: list[Any], answers: list[dict[str, Any]], settings: Any, key: str) -> Example:
    """The example of answers with their ranks or scores. Raises Left where they prefer none."""
    if len(answers) < 2:
        raise Left(FEW)
    texts, found = [], []
    for number, one in enumerate(answers, 1):
        where = f"{key}[{number}]"
        name = next((name for name in _TEXTS if name in one), "")
        texts.append(turns.single(one.get(name), f"{where}.{name or 'answer'}"))
        rank = next((one[name] for name in _RANKS if one.get(name) is not None), None)
        score = next((one[name] for name in _SCORES if one.get(name) is not None), None)
        if rank is None and score is None:
            raise ValueError(f"{where}: has no rank and no score, found {', '.join(one)}; expected one of "
                             f"{', '.join((*_RANKS, *_SCORES))}")
        value = -turns.number(rank, f"{where}.rank") if rank is not None else _score(score, where)
        found.append((value, value if score is None else _score(score, where)))
    order = sorted(range(len(answers)), key=lambda i: -found[i][0])
    worse = [i for place, i in enumerate(order) if not place or found[i][0] < found[order[0]][0]]
    tied = "" if len(worse) == len(order) else NO_WORSE if len(worse) < 2 else AS_GOOD
    if settings.ties == "drop":
        order, tied = worse, ""
    if len(order) < 2:
        raise Left(NO_WORSE)
    return Example(prompt, [texts[i] for i in order], scores=[found[i][1] for i in order], kept=tied)


def _score(value: Any, where: str) -> float:
    return float(value) if isinstance(value, bool) else turns.number(value, f"{where}.score")


def _solutions(data: dict[str, Any], settings: Any) -> Example:
    given = [{"text": turns.text(data, "ground_truth"), "score": 1.0}]
    given += [one for one in data.values() if isinstance(one, dict) and "solution" in one]
    made = ordered(turns.required(data), given, settings, "solutions")
    return replace(made, target=Target(answer=checked.final(turns.text(data, "ground_truth"))))


SHAPE = Shape("ranked lists", (*((prompt, answers) for prompt in ("prompt", "instruction", "question", "query")
                                 for answers in LISTS), ("question", "ground_truth", "6b_finetuning")), read,
              reads=("input", "scores", "ratings", "rating", "ranks", "rewards", "6b_verification",
                     "175b_finetuning", "175b_verification"))
