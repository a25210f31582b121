"""The numbers stages report while they run, and what they add up to per iteration.

metrics.jsonl only grows, so what was read stays read: a poll parses the new lines.
"""

import math
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flows.dashboard import facts, samples, tables
from flows.dashboard.facts import Row
from flows.dashboard.files import Files, NotHere, signature
from pipeline.tracking import METRICS, read_lines

_POINTS = 600  # of one curve; more are averaged, their lowest and highest kept
_BINS = (20, 48)  # of a histogram: the more values, the more
_SCORES = 20_000  # prompts a histogram is made of, with all their completions
_ENVELOPE = ("step", "at", "time")


class Log:
    """The lines of one metrics.jsonl so far, by step."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset, self.lines = path, 0, dict[str, list[Row]]()
        self._lock = threading.Lock()

    def read(self) -> dict[str, list[Row]]:
        """Everything so far, new lines included. A step that went on from a checkpoint replaces what it repeats."""
        with self._lock:
            if self.path.exists() and self.path.stat().st_size < self.offset:
                self.lines = {}  # the file was made anew
            new, self.offset = read_lines(self.path, self.offset)
            for line in (one for one in new if isinstance(one.get("at", 0), int | float)):
                known = self.lines.setdefault(str(line.get("step")), [])
                while known and known[-1].get("at", 0) > line.get("at", 0):
                    known.pop()
                same = bool(known) and known[-1].get("at") == line.get("at")
                known.append({**known.pop(), **line} if same else line)
            return {step: list(lines) for step, lines in self.lines.items()}


def metrics(files: Files, name: str) -> Row:
    """Every step's curves as columns. A step taken from another run shows what that run wrote while computing it."""
    found = []
    for step in facts.steps_of(files, files.run(name)):
        origin = step["made_by"] or {"run": name, "step": step["name"]}
        try:
            lines = _log(files, str(origin["run"])).read().get(str(origin["step"]), [])
        except (NotHere, ValueError):
            lines = []
        if lines:
            found.append({"step": step["name"], "base": step["base"], "stage": step["stage"], "state": step["state"],
                          "iteration": step["iteration"], "made_by": step["made_by"], **_columns(lines)})
    return {"run": name, "steps": found}


def _log(files: Files, name: str) -> Log:
    path = files.run_path(name, METRICS)
    sign = signature(path)
    return files.remember(("metrics", path), sign and sign[2], lambda: Log(path))  # the inode: a file made anew


def _columns(lines: list[Row]) -> Row:
    """{"at", "time", "worked", "tokens": [...], "values": {name: [...]}, "averaged": n}: n lines became one point.

    worked: seconds of work up to there, pauses left out; tokens: trained on or sampled up to there; both are null where
    a stage tells no rate. not_finite: the points of a number among whose lines one is not finite; such a point has no
    value. low, high: of the lines of each point, where they are several.
    """
    width = -(-len(lines) // _POINTS)
    chunks = [lines[i : i + width] for i in range(0, len(lines), width)]
    names = sorted({k for line in lines for k in line if k not in _ENVELOPE})
    found: dict[str, list[list[float]]] = {n: [_numbers(x.get(n) for x in chunk) for chunk in chunks] for n in names}
    bad = {n: [i for i, one in enumerate(of) if not all(map(math.isfinite, one))] for n, of in found.items()}
    tokens, worked = _so_far(lines)
    ends = [min(i + width, len(lines)) - 1 for i in range(0, len(lines), width)]
    columns = {"at": [lines[i].get("at") for i in ends], "time": [lines[i].get("time") for i in ends],
               "worked": [worked[i] for i in ends] if worked else None,
               "tokens": [tokens[i] for i in ends] if tokens else None, "averaged": width,
               "values": {n: [_of(one, lambda v: sum(v) / len(v)) for one in of] for n, of in found.items()},
               "not_finite": {n: at for n, at in bad.items() if at}}
    if width > 1:
        columns |= {"low": {n: [_of(one, min) for one in of] for n, of in found.items()},
                    "high": {n: [_of(one, max) for one in of] for n, of in found.items()}}
    return columns


def _so_far(lines: list[Row]) -> tuple[list[float], list[float]]:
    """Tokens and seconds of work up to each line, from its rates; empty where a line has none."""
    tokens, worked, before = [0.0], [0.0], 0.0
    for line in lines:
        rate, pace, at = (line.get(k) for k in ("tokens_per_second", "seconds_per_step", "at"))
        if not (isinstance(pace, int | float) and isinstance(rate, int | float) and isinstance(at, int | float)):
            return [], []
        worked.append(worked[-1] + pace * (at - before))
        tokens.append(tokens[-1] + rate * pace * (at - before))
        before = at
    return tokens[1:], worked[1:]


def tokens_trained(files: Files, name: str) -> float | None:
    """By all training steps of the run's loop together; None where they did not say."""
    ends = [s["tokens"][-1] for s in metrics(files, name)["steps"] if s["stage"] == "train_preference" and s["tokens"]]
    return sum(ends) if ends else None


def _numbers(values: Iterable[Any]) -> list[float]:
    return [float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]


def _of(values: list[float], what: Callable[[list[float]], float]) -> float | None:
    """None where there is none, or one is not finite."""
    return what(values) if values and all(map(math.isfinite, values)) else None


def iterations(files: Files, name: str) -> Row:
    """What the iterations view shows beside the run's table: histograms, comparisons by score, every other number."""
    steps = facts.steps_of(files, files.run(name))
    serves = facts.purposes(steps)
    scored = [s for s in steps if s["stage"] == "score" and s["key"] and s["state"] in ("done", "cached")]
    return {
        "run": name,
        "numbers": [{"step": s["name"], "base": s["base"], "stage": s["stage"], "iteration": s["iteration"],
                     "counts": s["counts"], "dropped": s["dropped"]} for s in steps if s["counts"]],
        "trained": _last_metrics(files, name, steps),
        "histograms": {purpose: _histograms(files, [s for s in scored if purpose in serves.get(s["name"], ())])
                       for purpose in ("train", "judge")},
        "documents": _documents(files, steps)}


def _last_metrics(files: Files, name: str, steps: list[Row]) -> list[Row]:
    """How each training step ended: its last line of metrics."""
    curves = {c["step"]: c for c in metrics(files, name)["steps"]}
    return [{"step": s["name"], "iteration": s["iteration"],
             "values": {k: v[-1] for k, v in curves[s["name"]]["values"].items() if v[-1] is not None}}
            for s in steps if s["stage"] == "train_preference" and s["name"] in curves]


def _histograms(files: Files, steps: list[Row]) -> dict[str, Row]:
    """Score name -> shares of the completions per bin, the same bins for every step, so that they can be compared."""
    loaded = []
    for step in steps:
        try:
            side = samples.numbers_of(files, step)
            table = side or tables.open_table(files, files.table(step["stage"], step["key"], "groups"))
        except NotHere:
            continue
        values, read = files.remember(("scores", table.folder), table.mark, partial(tables.scores, table, _SCORES))
        loaded.append((step, values, {"rows": read, "of": table.rows, "unit": "completions" if side else "prompts"}))
    names = sorted({n for _, values, _ in loaded for n in values})
    return {n: made for n in names if (made := _histogram([(s, v[n], r) for s, v, r in loaded if n in v])) is not None}


def _histogram(loaded: list[tuple[Row, np.ndarray, Row]]) -> Row | None:
    having = [item for item in loaded if len(item[1])]
    if not having:
        return None
    low = min(float(np.quantile(values, 0.001)) for _, values, _ in having)
    high = max(float(np.quantile(values, 0.999)) for _, values, _ in having)
    bins = int(np.clip(np.sqrt(min(len(values) for _, values, _ in having)), *_BINS))
    edges = np.linspace(low, high if high > low else low + 1.0, bins + 1)
    series = []
    for step, values, read in having:
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        series.append({"step": step["name"], "iteration": step["iteration"], "mean": float(values.mean()),
                       "deviation": float(values.std()), "number": len(values), **read,
                       "share": [round(float(c), 6) for c in counts / len(values)]})
    return {"edges": [round(float(e), 6) for e in edges], "series": series}


def _documents(files: Files, steps: list[Row]) -> list[Row]:
    """The JSON documents that evaluation, diagnosis and gates leave in their artifacts, as they are."""
    found = []
    for step in steps:
        manifest = files.manifest(step["stage"], step["key"]) if step["state"] in ("done", "cached") else None
        for file, size in ((f, x["size"]) for f, x in (manifest or {}).get("files", {}).items()):
            if file.endswith(".json") and "/" not in file and size < 1_000_000:
                content = files.json(files.artifact(step["stage"], str(step["key"]), file))
                found.append({"step": step["name"], "stage": step["stage"], "iteration": step["iteration"],
                              "file": file, "content": content})
    return found
