"""What `align gc` leaves a run that is being repaired."""

from __future__ import annotations

import shutil
import threading

import pytest

from flows import command, inspection
from flows.driver import Driver
from pipeline import gc, plan, runs


@pytest.fixture(autouse=True)
def without_a_model(monkeypatch):
    """Of which the space that a run needs and its summary are made."""
    monkeypatch.setattr(command, "shortage", lambda *_: [])
    monkeypatch.setattr(command, "conclude", lambda *_: None)


def test_gc_during_a_repair_keeps_what_the_run_can_still_reuse(two_steps, monkeypatch, capsys):
    """The first artifact is gone and the run was started again and killed: the later ones wait for it."""
    workspace = two_steps()
    run = runs.load(workspace, "shown")
    Driver(workspace, run, plan.steps_of(run)).walk()
    data, scores = (item.artifact.path for item in plan.look_up_all(workspace, plan.steps_of(run)))
    keys = [step["key"] for step in runs.load(workspace, "shown").steps]
    shutil.rmtree(data)
    monkeypatch.setattr(command, "_drive", lambda *_, **__: 130)  # killed before it did anything
    assert command.run(["run=shown", f"workspace={workspace}"]) == 130
    again = runs.load(workspace, "shown")
    assert (again.outcome, [step["key"] for step in again.steps]) == (runs.RUNNING, keys)
    assert inspection.collect(str(workspace), apply=True) == 0
    assert scores.is_dir() and "nothing to remove" in capsys.readouterr().out
    Driver(workspace, again, plan.steps_of(again)).walk()
    assert [step["state"] for step in runs.load(workspace, "shown").steps] == ["done", "cached"]


def test_a_run_found_whole_says_so_in_its_events(two_steps):
    """So that a lost run.json does not make garbage of what another run has made for it."""
    workspace = two_steps()
    run = runs.load(workspace, "shown")
    Driver(workspace, run, plan.steps_of(run)).walk()
    keys = [step["key"] for step in runs.load(workspace, "shown").steps]
    events = runs.folder(workspace, "shown") / "events.jsonl"
    events.unlink()
    assert command.run(["run=shown", f"workspace={workspace}"]) == 0
    assert all(key in events.read_text() for key in keys)
    (runs.folder(workspace, "shown") / "run.json").unlink()
    assert inspection.collect(str(workspace), apply=True) == 0
    assert all(item.cached for item in plan.look_up_all(workspace, plan.steps_of(run)))


def test_a_folder_that_is_being_removed_has_the_size_of_what_is_left(tmp_path):
    """Somebody else removes it while its files are counted, again and again."""
    for number in range(20):
        folder = tmp_path / str(number)
        for inner in range(60):
            (folder / str(inner)).mkdir(parents=True)
            (folder / str(inner) / "file").write_bytes(bytes(10))
        assert gc.size(folder) == 600
        removing = threading.Thread(target=shutil.rmtree, args=(folder,))
        removing.start()
        while removing.is_alive():
            assert gc.size(folder) <= 600
        assert gc.size(folder) == 0
