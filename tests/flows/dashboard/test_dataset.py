"""What the page says of a run's data: notes of its imports, the measures of `align data show`, what was left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.dashboard import dataset
from flows.dashboard.export import answers
from flows.dashboard.files import Files
from tests.flows.dashboard import world


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("dashboard")
    world.imported_run(place, "mine")
    empty = world.Maker(place, "empty")
    empty.waiting("data", "import_data")
    empty.save()
    return place


def test_the_notes_and_measures(workspace: Path) -> None:
    found = dataset.look(Files(workspace), "mine")
    assert found["notes"] == [
        "data: 43 rows, read as: pairs (43); kept: sft 0, pref 40, unlabeled 0, eval 0",
        "data: left out: the answer is empty (3)", "data: keys not read: source (43)",
        "data.new, iteration 3: 6 rows, read as: prompts (6); kept: unlabeled 5"]
    (split,) = found["splits"]
    assert (split["split"], split["groups"], split["rows"], split["left"]) == ("pref", 40, 40, "long_prompt 2")
    lengths = [len(c.token_ids) for g in world.paired(world.prompts(40, 0)) for c in g.completions]
    assert split["cells"][2].partition(" ")[0] == str(sorted(lengths)[len(lengths) // 2])
    assert split["sentences"][-1].startswith("pref: scripts: latin")


def test_a_run_without_data_yet_and_one_that_is_exported(workspace: Path) -> None:
    assert dataset.look(Files(workspace), "empty") == {"run": "empty", "most": 2000, "notes": [], "splits": []}
    assert "runs/mine/data" in answers(Files(workspace), "mine")
