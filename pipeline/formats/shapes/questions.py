"""Questions of benchmarks: evaluation prompts, whatever the file is called.

    {"question_id", "turns"}                  MT-Bench, Vicuna, Arena-Hard v0.1: the first turn (data=mt_bench: both)
    {"uid", "category", "prompt"}             Arena-Hard v2
    {"instruction", "output", "generator"}    AlpacaEval's outputs: the instruction
"""

from typing import Any

from pipeline.formats import turns
from pipeline.formats.contract import Example, Shape
from pipeline.records import Message


def read(data: dict[str, Any], settings: Any) -> list[Example]:
    group = str(data.get("cluster") or data.get("category") or data.get("dataset") or "")
    if "turns" not in data:
        return [Example(turns.required(data), split="eval", dataset=group)]
    asked = data["turns"]
    first = asked[0] if isinstance(asked, list) and asked else None
    first = first.get("content") if isinstance(first, dict) else first
    if not isinstance(first, str):
        raise ValueError(f"turns: {str(asked)[:60]}, expected a list of texts or of {{content: text}}")
    id = "" if data.get("id") is not None else turns.row_id({"id": data["question_id"]})
    return [Example([Message("user", first)], id=id, split="eval", dataset=group,
                    unread=("the turns after the first",) if len(asked) > 1 else ())]


SHAPE = Shape("benchmark questions", (("question_id", "turns"), ("uid", "category", "prompt"),
                                      ("instruction", "generator", "dataset")), read,
              reads=("cluster", "category", "dataset", "input"))
