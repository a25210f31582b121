"""Which artifacts runs share: each once, with the runs that use it and what it was made of."""

from __future__ import annotations

from pathlib import Path

from flows.dashboard.files import Files
from flows.dashboard.shared import shared
from tests.flows.dashboard import world


def test_a_shared_artifact_stands_once_with_all_its_runs(tmp_path: Path):
    """Two seeds: what lies before the loop is one, training is each run's own; the third run has finished one step."""
    for seed in (0, 1):
        world.whole_run(tmp_path, f"s{seed}", seed=seed, number=4)
    third = world.Maker(tmp_path, "third")
    third.step("data", "import_data", {}, {"sft": 3}, files=["sft.jsonl:" + "ab" * 32])
    third.waiting("sft", "sft", inputs=("data",))
    third.save()
    found = shared(Files(tmp_path), ["s0", "s1", "third", "s0"])
    assert sorted(found["runs"]) == ["s0", "s1", "third"]
    own = {(a["step"], *(found["runs"][r] for r in a["runs"])): a for a in found["artifacts"]}
    users = {step: sorted(runs) for step, *runs in own if step in ("data", "sft")}
    assert users == {"data": ["s0", "s1", "third"], "sft": ["s0", "s1"]}
    assert ("train[1]", "s0") in own and ("train[1]", "s1") in own
    made_of = [found["artifacts"][i]["step"] for i in own["evaluate[1]", "s1"]["reads"]]
    assert sorted(made_of) == ["answer_scores[1]", "answers[1]", "baseline", "baseline_scores"]
    assert own["train[1]", "s1"]["made_by"] == "s1"
    order = found["steps"]
    assert order.index("data") < order.index("sft") < order.index("train[1]") < order.index("train[2]")
    assert found["saved"] == sum(a["seconds"] * (len(a["runs"]) - 1) for a in own.values()) > 0


def test_runs_that_have_finished_nothing(tmp_path: Path):
    run = world.Maker(tmp_path, "fresh")
    run.waiting("data", "import_data")
    run.save()
    assert shared(Files(tmp_path), ["fresh"])["artifacts"] == []
