"""When the steps of a run were at work: finished, failed, killed and running ones; the machine's curves, thinned."""

from __future__ import annotations

import json
from pathlib import Path

from flows.dashboard.files import Files
from flows.dashboard.timeline import timeline
from pipeline import runs
from tests.flows.dashboard import world


def written(place: Path, *events: tuple[float, str, str]) -> world.Maker:
    run = world.Maker(place, "timed")
    run.waiting("sft", "sft")
    run.save(outcome=runs.INTERRUPTED)
    (run.folder / "events.jsonl").write_text("".join(
        json.dumps({"time": time, "step": step, "event": event}) + "\n" for time, step, event in events))
    return run


def test_every_try_is_a_span(tmp_path: Path):
    written(tmp_path, (10, "data", "started"), (12, "data", "finished"), (12, "sft", "started"), (30, "sft", "started"),
            (40, "sft", "failed"), (50, "sft", "started"), (60, "sft", "finished"), (61, "train[1]", "cached"),
            (62, "generate[1]", "started"))
    assert [tuple(span.values()) for span in timeline(Files(tmp_path), "timed")["spans"]] == [
        ("data", 10, 12, "finished"), ("sft", 12, 30, "killed"), ("sft", 30, 40, "failed"), ("sft", 50, 60, "finished"),
        ("generate[1]", 62, 62, "killed")]


def test_a_running_step_goes_on(tmp_path: Path):
    run = written(tmp_path, (10, "sft", "started"))
    run.save(outcome=runs.RUNNING)
    with runs.hold(tmp_path, "timed"):
        assert timeline(Files(tmp_path), "timed")["spans"] == [
            {"step": "sft", "start": 10, "end": None, "how": "running"}]


def test_the_machines_lines_are_averaged(tmp_path: Path):
    """801 lines become 267 points of three: times 0, 1 and 2 are 1 on average, and cores 0, 0.1 and 0.2."""
    run = written(tmp_path)
    assert timeline(Files(tmp_path), "timed")["machine"] is None
    rest = {"memory_mb": 100, "own_memory_mb": 10, "gpus": [{"busy": 0.5, "memory_mb": 1}] * 2}
    lines = [json.dumps({"time": float(i), "cpu": i % 10 / 10, **rest}) for i in range(801)]
    (run.folder / "machine.jsonl").write_text("\n".join([*lines, '{"time": 1, "cp']))
    found = timeline(Files(tmp_path), "timed")["machine"]
    assert (len(found["time"]), found["time"][0], found["cpu"][0], found["gpu"][0]) == (267, 1.0, 0.1, 0.5)
    assert found["gpu_memory_mb"][0] == 2, "of both GPUs together"
