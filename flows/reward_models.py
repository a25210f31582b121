"""How right reward models are about what people prefer, beside rules without a model: a table for the run's report."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline import markdown
from pipeline.markdown import LEFT, RIGHT
from pipeline.report import StepRecord

_HELD = "held_out_"


def table(steps: Sequence[StepRecord], benches: Iterable[tuple[str, Path]]) -> str:
    """The held-out pairs of every training, then each subset of bench.json -> a Markdown table, "" for none.

    benches: (step, its artifact's folder).
    """
    headers = ("pairs", "accuracy (95 % interval)", "length alone", "chance", "length-controlled", "calibration error")
    found = [_row(f"{s.step}: held out", s.counts["held_out_groups"], {
        name.removeprefix(_HELD): value for name, value in s.counts.items() if name.startswith(_HELD)})
        for s in steps if s.kind == "train_reward" and f"{_HELD}accuracy_low" in s.counts]
    found += [row for step, folder in benches
              for row in _of_bench(step, json.loads((folder / "bench.json").read_text()))]
    return markdown.table({"measured on": LEFT, **dict.fromkeys(headers, RIGHT)}, found)


def _of_bench(step: str, bench: dict[str, Any]) -> Iterator[list[str]]:
    """A row for each subset, then for all pairs where there are several."""
    for name, numbers in bench["subsets"].items():
        yield _row(f"{step}: {name}", numbers["pairs"], numbers)
    if len(bench["subsets"]) > 1:
        yield _row(f"{step}: all", bench["all"]["pairs"], bench["all"])


def _row(name: str, pairs: float, numbers: dict[str, float]) -> list[str]:
    controlled = numbers.get("controlled_accuracy")
    return [name, f"{pairs:,.0f}",
            f"{numbers['accuracy']:.1%} ({numbers['accuracy_low']:.1%} to {numbers['accuracy_high']:.1%})",
            f"{numbers['length_accuracy']:.1%}", "50.0%", "" if controlled is None else f"{controlled:.1%}",
            f"{numbers['ece']:.3f}"]
