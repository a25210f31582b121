"""What policies still can, of questions with known answers: a table for the run's report."""

from collections.abc import Sequence
from typing import Any

from pipeline import markdown
from pipeline.markdown import RIGHT


def table(found: Sequence[tuple[int, dict[str, Any]]]) -> str:
    """(iteration, watch.json) -> a Markdown table, "" for none."""
    headers = ("iteration", "questions", "right (interval)", "start model", "change (interval), points", "lost", "won")
    return markdown.table(dict.fromkeys(headers, RIGHT), [
        (str(iteration), f"{one['questions']:,}",
         f"{one['accuracy']:.1%} ({one['accuracy_low']:.1%} to {one['accuracy_high']:.1%})",
         f"{one['start_accuracy']:.1%}",
         f"{100 * one['gain']:+.1f} ({100 * one['gain_low']:+.1f} to {100 * one['gain_high']:+.1f})",
         str(one["lost"]), str(one["won"])) for iteration, one in found])
