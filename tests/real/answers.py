"""Twenty short factual questions, and how many of them each model of a run answers.

    align sample RUN --prompts tests/real/questions.jsonl --max-tokens 48 --json | python -m tests.real.answers

A question is answered where its pattern is found in the text, whatever the case of its letters. The questions and their
patterns were written before any model was asked.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

QUESTIONS = Path(__file__).with_name("questions.jsonl")
MAX_TOKENS = 48


def answered(rows: list[dict[str, Any]]) -> dict[str, list[bool]]:
    """Model -> whether it answered each question; `rows` is what `align sample --json` prints for the questions."""
    asked = [json.loads(line) for line in QUESTIONS.read_text().splitlines()]
    found: dict[str, list[bool]] = {}
    for question, row in zip(asked, rows, strict=True):
        assert row["prompt"] == [{"role": "user", "content": question["prompt"]}]
        for answer in row["answers"]:
            right = re.search(question["accepted"], answer["text"], re.IGNORECASE) is not None
            found.setdefault(answer["model"], []).append(right)
    return found


def main() -> None:
    rows = json.load(sys.stdin)
    for model, right in answered(rows).items():
        print(f"{model}: {sum(right)} of {len(right)}")
        for row, good in zip(rows, right, strict=True):
            text = next(a["text"] for a in row["answers"] if a["model"] == model)
            if not good:
                print(f"  not answered: {row['prompt'][-1]['content']} {text.strip()!r}")


if __name__ == "__main__":
    main()
