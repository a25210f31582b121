"""Where a run's seconds went: hand-worked from events and manifests, and of a real step."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from flows import timeline
from pipeline import runs, store
from pipeline.errors import UserError


@pytest.fixture
def run_of(monkeypatch, tmp_path):
    """run_of(events, manifests by key): a workspace in which the run "r" has four steps."""
    steps = [{"name": name, "stage": stage} for name, stage in
             (("data", "import_data"), ("sft", "sft"), ("answers[1]", "generate"), ("old", "a_stage_that_is_no_more"))]

    def call(events: list[tuple[float, str, str, int]], manifests: dict[str, dict]) -> list[timeline.Span]:
        folder = runs.folder(tmp_path, "r")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "events.jsonl").write_text("".join(
            json.dumps({"time": time, "step": step, "event": event, "pid": pid, "key": f"k-{step}"}) + "\n"
            for time, step, event, pid in events))
        monkeypatch.setattr(timeline, "load_run", lambda workspace, name: SimpleNamespace(steps=steps))
        monkeypatch.setattr(store, "find", lambda workspace, kind, key: (
            SimpleNamespace(manifest=manifests[key]) if key in manifests else None))
        return timeline.spans(tmp_path, "r")

    return call


SPENT = {"compute": 3.0, "import": 0.5, "load": 1.0, "write": 0.25, "hash": 0.0}


def test_the_parts_of_a_step_are_its_seconds(run_of):
    """sft: 6 s from start to end, its process 5.5 of them, 4.75 counted in it; 2 s behind data. What samples waited 4 s
    for the engine, which is no time between steps."""
    found = run_of([(0, "data", "started", 7), (1, "data", "finished", 7), (3, "sft", "started", 7),
                    (9, "sft", "finished", 7), (13, "answers[1]", "started", 7), (20, "answers[1]", "finished", 7)],
                   {"k-data": {"process_seconds": 1.0, "spent": {**dict.fromkeys(SPENT, 0.0), "compute": 1.0}},
                    "k-sft": {"process_seconds": 5.5, "spent": SPENT},
                    "k-answers[1]": {"process_seconds": 7.0, "spent": SPENT}})
    assert [(span.step, span.seconds) for span in found] == [("data", 1.0), ("sft", 8.0), ("answers[1]", 11.0)]
    assert found[1].parts == {**SPENT, "start-up": 0.75, "commit": 0.5, "between": 2.0}
    assert found[2].parts == {**SPENT, "start-up": 2.25, "commit": 0.0, "engine": 4.0}
    for span in found:
        assert sum(span.parts.values()) == pytest.approx(span.seconds)
    lines = timeline.table(found, None)
    assert lines[0].split() == ["step", "seconds", "start-up", "import", "load", "write", "commit", "engine", "between",
                                "compute"]  # nothing was hashed: no column
    assert lines[2].split() == ["sft", "8.0", "0.8", "0.5", "1.0", "0.2", "0.5", "2.0", "3.0"]
    assert lines[4].split() == ["all", "20.0", "3.0", "1.0", "2.0", "0.5", "0.5", "4.0", "2.0", "7.0"]
    assert lines[5].split() == ["of", "it", "15%", "5%", "10%", "2%", "2%", "20%", "10%", "35%"]
    assert "start-up, imports, commits and the time between steps: 6.5 s, 32.5% of 20.0 s" in lines
    assert lines[-1] == ("most of it: engine of answers[1] 4.0 s; compute of sft 3.0 s; compute of answers[1] 3.0 s")


def test_pauses_kills_and_older_code(run_of):
    """A night between two processes of the run is nobody's time; of a step that was killed the last attempt counts; one
    that older code made, or whose stage is gone, is a line without parts; one that was there already is none."""
    found = run_of([(0, "data", "started", 7), (1, "data", "finished", 7), (2, "sft", "started", 7),
                    (9000, "data", "cached", 8), (9000, "sft", "started", 8), (9004, "sft", "failed", 8),
                    (9006, "sft", "started", 8), (9016, "sft", "finished", 8), (9016, "old", "started", 8),
                    (9017, "old", "finished", 8)], {"k-sft": {"process_seconds": 9.0}})
    assert [(span.step, span.seconds, span.parts) for span in found] == [
        ("data", 1.0, {}), ("sft", 12.0, {}), ("old", 1.0, {})]


def test_a_run_that_made_nothing(run_of, tmp_path):
    run_of([(0, "data", "cached", 7)], {})
    with pytest.raises(UserError, match="run: r has made no step of its own"):
        timeline.show(tmp_path, "r")
