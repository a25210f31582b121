"""What scorers put on their desks, on disk: judged/part-00000.jsonl, a line for each question, and what they count."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pipeline import files
from pipeline.rewards.contract import Desk

_ASKED = {"verdict", "outcome", "places"}  # what a judge said of answers; rows of rules have none of them


def write(path: Path, desks: Mapping[str, Desk]) -> None:
    """What was asked about the groups of a part, by score, taken off the desks."""
    lines = [json.dumps({"score": name, **row}) for name, desk in desks.items() for row in desk.rows]
    if lines:
        files.write_atomic(path, "".join(f"{line}\n" for line in lines))
        files.note(path, path)
    else:
        path.unlink(missing_ok=True)  # of an attempt that was killed
    for desk in desks.values():
        desk.rows.clear()


def counted(folder: Path) -> tuple[dict[str, int], Counter[str]]:
    """Numbers of questions and of orders that disagree, by name; and "score: why" of what has no verdict."""
    asked, disagree, missing = Counter[str](), Counter[str](), Counter[str]()
    for path in sorted(folder.glob("*.jsonl")):
        for row in map(json.loads, path.read_text().splitlines()):
            asked[row["score"]] += bool(_ASKED & row.keys())
            disagree[row["score"]] += row.get("agree") is False
            missing.update([f"{row['score']}: {row['why']}"] if row["why"] else [])
    numbers = {f"{name}_judged": number for name, number in (+asked).items()}
    return numbers | {f"{name}_orders_disagree": disagree[name] for name in +asked}, missing
