"""What `align status`, `explain` and `report` print in terminals of 80, 100 and 140 columns, and behind a pipe."""

import shutil
import time
from pathlib import Path

import pytest

from flows import inspection, screen
from flows.dashboard.report import fitted, report
from pipeline import runs, store
from tests.flows.loops import run as run_stages

COUNTS = {
    "train_preference": {"steps": 64.0, "groups": 512.0},
    "evaluate": {"win_rate": 0.771, "win_rate_low": 0.695, "win_rate_high": 0.833, "length_controlled_win_rate": 0.706,
                 "length_mean": 40.0},
}


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """shown(width, call) -> the lines that `call` prints in a terminal that wide; None: behind a pipe."""

    def call(width: int | None, function: object, *arguments: object) -> list[str]:
        monkeypatch.setattr(screen, "width", lambda: width)
        capsys.readouterr()
        assert function(*arguments) == 0  # type: ignore[operator]
        return capsys.readouterr().out.splitlines()

    return call


@pytest.fixture
def two_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace whose run "night" has trained and judged, and failed at its diagnostics."""
    steps = [("train[1]", "train_preference", "done"), ("evaluate[1]", "evaluate", "cached"),
             ("diagnose[1]", "diagnose", "interrupted")]
    runs.save(tmp_path, runs.Run("night", {"choices": {"recipe": "pco"}}, [], {}, [
        {"name": name, "stage": stage, "iteration": 1, "state": state, "inputs": [], "key": "0123456789abcdef0123"[:20],
         **({"seconds": 42.0} if state == "done" else {})} for name, stage, state in steps], runs.INTERRUPTED,
        time.time()))

    def find(place: Path, kind: str, key: str) -> store.Artifact | None:
        version = {"train_preference": 4, "evaluate": 6}.get(kind)
        manifest = {"counts": COUNTS.get(kind), "dropped": {}, "version": version}
        return store.Artifact(kind, key, place, manifest) if kind in COUNTS else None

    monkeypatch.setattr(store, "find", find)
    return tmp_path


def test_status(shown, two_done):
    """Keys go first; below 100 columns the results stand below their steps."""
    go_on = ["", "go on with:", f"    align run run=night workspace={two_done}"]
    train, judge = "64 steps, 512 groups", "win rate 77.1% (69.5% to 83.3%), length-controlled 70.6%, length 40.0"
    no_room = "(no room for key; with | cat every column is shown)"
    assert shown(80, inspection.status, str(two_done), "night") == [
        "run night: interrupted",
        "step         state          time", "    result",
        "train[1]     done         42.0 s", f"    {train}",
        "evaluate[1]  cached", f"    {judge}",
        "diagnose[1]  interrupted", no_room, *go_on]
    assert shown(100, inspection.status, str(two_done), "night") == [
        "run night: interrupted",
        "step         state          time  result",
        f"train[1]     done         42.0 s  {train}",
        "evaluate[1]  cached               win rate 77.1% (69.5% to 83.3%), length-controlled 70.6%, length",
        "                                  40.0",
        "diagnose[1]  interrupted", no_room, *go_on]
    wide = [
        "run night: interrupted",
        "step         state          time  key                   result",
        f"train[1]     done         42.0 s  0123456789abcdef0123  {train}",
        f"evaluate[1]  cached               0123456789abcdef0123  {judge}",
        "diagnose[1]  interrupted          0123456789abcdef0123", *go_on]
    assert shown(140, inspection.status, str(two_done), "night") == wide
    assert shown(None, inspection.status, str(two_done), "night") == wide


def test_the_runs_of_a_workspace(shown, two_done):
    assert shown(80, inspection.status, str(two_done), None)[1:] == [
        "run    recipe  state        steps  changed", "night  pco     interrupted    2/3  0 s ago"]


def test_explain(shown, tmp_path, small_world):
    """A field stays whole; what stood there and what stands here are folded below it."""
    world = tmp_path / "world"
    shutil.copytree(small_world, world)
    shutil.copy(world / "sft.jsonl", world / "other.jsonl")
    words = [f"data.root={world}"]
    run_stages(["recipe=sft", *words], tmp_path, "first", "data")
    asked = ["recipe=sft", "run=second", f"workspace={tmp_path}", *words, "data.format.sft=other.jsonl"]
    for width in (80, 100, 140):
        assert shown(width, inspection.explain, "data", asked)[-3:] == [
            "settings.format.sft", "    there: 'sft.jsonl'", "    here: 'other.jsonl'"]
    *_, line = shown(None, inspection.explain, "data", asked)
    assert line.split() == ["settings.format.sft", "'sft.jsonl'", "'other.jsonl'"]


REPORT = """# night: pco

| iteration | prompts | win rate (interval) | reason |
| ---: | ---: | ---: | ---: |
| 0 | 512 |  |  |
| 1 | 512 | 77.1% (69.5% to 83.3%) | rows over the limit |

A sentence that is longer than forty characters is folded.
"""


def test_a_report_in_a_terminal_is_laid_out_and_behind_a_pipe_markdown(shown, tmp_path):
    assert fitted(REPORT, 40).splitlines() == [
        "# night: pco", "",
        "iteration  prompts", "0              512", "1              512",
        "    win rate (interval) 77.1% (69.5% to", "    83.3%)", "    reason: rows over the limit", "",
        "A sentence that is longer than forty", "characters is folded."]
    assert fitted(REPORT, 80).splitlines()[2:5] == [
        "iteration  prompts     win rate (interval)  reason",
        "0              512",
        "1              512  77.1% (69.5% to 83.3%)  rows over the limit"]
    runs.save(tmp_path, runs.Run("night", {"choices": {}}, [], {}, [], runs.DONE, 0.0))
    (runs.folder(tmp_path, "night") / "report.md").write_text(REPORT)
    assert shown(None, report, str(tmp_path), "night", False, False) == [*REPORT.splitlines(), ""]
