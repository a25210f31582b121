"""Files beside data sets that hold no prompt: answers to a benchmark, judgments, leaderboards, judges' templates."""

from typing import Any

from pipeline.formats.contract import Example, Left, Shape

_KINDS = {("question_id", "choices"): "a model's answer to a benchmark (data.format.answers of data=mt_bench)",
          ("question_id", "games"): "a judgment of a benchmark's answers (evaluation.judgments)",
          ("id", "dataset", "preference"): "a judge's preferences without the texts",
          ("name", "type", "prompt_template"): "a judge's prompt template",
          ("name", "win_rate", "n_total"): "a row of a leaderboard"}


def read(data: dict[str, Any], settings: Any) -> list[Example]:
    raise Left(next(text for keys, text in _KINDS.items() if all(key in data for key in keys)))


SHAPE = Shape("no prompts", tuple(_KINDS), read)
