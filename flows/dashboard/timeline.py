"""When each step of a run was at work, and how busy its machine was meanwhile: of events.jsonl and machine.jsonl."""

from pathlib import Path
from typing import Any

from flows import machine_log
from flows.dashboard import facts
from flows.dashboard.facts import Row
from flows.dashboard.files import Files, signature
from pipeline import runs
from pipeline.files import parsed_lines

_POINTS = 400  # of the machine's curves; more lines are averaged
_ENDS = ("finished", "failed")


def timeline(files: Files, name: str) -> Row:
    """{"spans": [{step, start, end, how}], "machine": {time, cpu, memory_mb, own_memory_mb, gpu, gpu_memory_mb}}, times
    since 1970.

    A span without an end of its own ended when the next one began (its process was killed), or goes on.
    """
    live = facts.live_state(files, files.run(name)) == runs.RUNNING
    events = _lines(files, name, "events.jsonl", step=str, event=str, time=(int, float))
    spans: list[Row] = []
    for event in events:
        unfinished = [span for span in spans if span["step"] == event["step"] and span["end"] is None][-1:]
        if event["event"] == "started":
            for span in unfinished:
                span |= {"end": event["time"], "how": "killed"}
            spans.append({"step": event["step"], "start": event["time"], "end": None, "how": "running"})
        elif event["event"] in _ENDS:
            for span in unfinished:
                span |= {"end": event["time"], "how": event["event"]}
    if not live:
        for span in (span for span in spans if span["end"] is None):
            span |= {"end": max((e["time"] for e in events), default=span["start"]), "how": "killed"}
    return {"run": name, "spans": spans, "machine": _machine(files, name)}


def _machine(files: Files, name: str) -> Row | None:
    number = (int, float)
    lines = _lines(files, name, machine_log.FILE, time=number, cpu=number, memory_mb=number, own_memory_mb=number)
    if not lines:
        return None
    width = -(-len(lines) // _POINTS)
    chunks = [lines[i : i + width] for i in range(0, len(lines), width)]
    found: Row = {k: [round(sum(x[k] for x in c) / len(c), 3) for c in chunks]
                  for k in ("time", "cpu", "memory_mb", "own_memory_mb")}
    if any(line.get("gpus") for line in lines):
        busy = [[gpu["busy"] for line in c for gpu in line.get("gpus", [])] for c in chunks]
        found["gpu"] = [round(sum(of) / len(of), 3) if of else None for of in busy]
        used = [[sum(gpu["memory_mb"] for gpu in line["gpus"]) for line in c if line.get("gpus")] for c in chunks]
        found["gpu_memory_mb"] = [round(sum(of) / len(of)) if of else None for of in used]
    return found


def _lines(files: Files, name: str, file: str, **kinds: Any) -> list[Row]:
    path: Path = files.run_path(name, file)
    sign = signature(path)
    found: list[Row] = [] if sign is None else files.remember(
        ("lines", path), sign, lambda: parsed_lines(path.read_bytes(), **kinds))
    return found
