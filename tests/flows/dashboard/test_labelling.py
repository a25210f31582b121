"""Judging by hand: blind and in a fixed order, verdicts counted as they were meant, an artifact that a run can read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.dashboard import labelling
from flows.dashboard.files import Files, NotHere
from flows.dashboard.written import Refused
from pipeline import gc, store
from pipeline.formats import files as any_file
from pipeline.statistics import wilson
from tests.flows.dashboard import world


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Twelve prompts; the policy's first answers say "ours", the baseline's "theirs"; gold prefers ours on odd ones."""
    run = world.Maker(tmp_path, "judged")
    ours, theirs = ([world.Group(f"p{i}", (world.Message("user", f"Question {i}?"),),
                                 (world.answer(0, f"{whose} {i}", reward(i)),), iteration=1) for i in range(12)]
                    for whose, reward in (("ours", lambda i: i % 2), ("theirs", lambda i: 0.5)))
    for name, groups in (("baseline", theirs), ("answers[1]", ours)):
        run.step(name, "generate", {}, {"n": len(name)}, world.bare(groups))
        run.step(name.replace("answers", "answer_scores").replace("baseline", "baseline_scores"), "score",
                 {"groups": f"{name}/groups"}, {}, groups)
    run.step("evaluate[1]", "evaluate", {"groups": "answers[1]/groups", "scores": "answer_scores[1]/scores",
             "baseline": "baseline/groups", "baseline_scores": "baseline_scores/scores"}, {"win_rate": 0.5})
    run.save()
    return Files(tmp_path)


def ours_is(pair: dict) -> str:
    return "left" if pair["left"].startswith("ours") else "right"


def judge(files: Files, wins: set[str]) -> None:
    """All twelve: the policy's answer is better where the prompt is in `wins`, else the other one."""
    while pairs := labelling.pairs(files, "judged")["pairs"]:
        for pair in pairs:
            other = {"left": "right", "right": "left"}[ours_is(pair)]
            said = ours_is(pair) if pair["id"] in wins else other
            labelling.keep(files, "judged", {"step": "evaluate[1]", "id": pair["id"], "said": said, "seconds": 2})


def test_pairs_are_blind_and_stay_as_they_are(files: Files):
    first = labelling.pairs(files, "judged")
    assert first == labelling.pairs(files, "judged") and (first["judged"], first["total"]) == (0, 12)
    assert {ours_is(pair) for pair in first["pairs"]} == {"left", "right"}
    assert [pair["id"] for pair in first["pairs"]] != sorted(pair["id"] for pair in first["pairs"])
    assert all(set(pair) == {"id", "messages", "left", "right"} for pair in first["pairs"]), "nothing says whose"


def test_what_the_verdicts_come_to(files: Files):
    """The policy won 9 of 12. Gold prefers it on the 6 odd prompts; the person did on 5 of these and 4 even ones: they
    agree on 5 odd and 2 even prompts, 7 of 12. The evaluation's outcomes are of other prompts' names but p0 to p9."""
    judge(files, {"p1", "p3", "p5", "p7", "p9", "p0", "p2", "p4", "p6"})
    found = labelling.result(files, "judged")
    assert (found["pairs"], found["win_rate"]) == (12, 0.75)
    assert (found["low"], found["high"]) == wilson(0.75, 12)
    assert found["agreement"]["gold"]["pairs"] == 12 and found["agreement"]["gold"]["share"] == pytest.approx(7 / 12)
    assert found["agreement"]["the evaluation"]["pairs"] == 10


def test_the_last_verdict_counts_and_one_can_be_taken_back(files: Files):
    pair = labelling.pairs(files, "judged")["pairs"][0]
    for said, rate in ((ours_is(pair), 1.0), ("tie", 0.5)):
        labelling.keep(files, "judged", {"step": "evaluate[1]", "id": pair["id"], "said": said})
        assert labelling.result(files, "judged")["win_rate"] == rate
    labelling.keep(files, "judged", {"step": "evaluate[1]", "id": pair["id"], "said": None})
    assert labelling.result(files, "judged") == {"step": "evaluate[1]", "pairs": 0}
    assert labelling.pairs(files, "judged")["pairs"][0] == pair, "it is asked again"


def test_the_artifact_is_kept_and_read_as_preferences(files: Files):
    judge(files, {"p1", "p2"})
    made = labelling.finish(files, "judged", {"step": "evaluate[1]"})
    assert labelling.finish(files, "judged", {})["key"] == made["key"], "the same verdicts are the same artifact"
    artifact = store.find(files.workspace, "label", made["key"])
    assert artifact is not None and store.damage(artifact) == []
    assert artifact.manifest["counts"] == {"pairs": 12, "human_win_rate": pytest.approx(2 / 12)}
    assert gc.find_garbage(files.workspace) == []
    lines = [json.loads(line) for line in (artifact.path / "preferences.jsonl").read_text().splitlines()]
    assert {line["id"]: line["chosen"].split()[0] for line in lines} == {
        f"p{i}": "ours" if i in (1, 2) else "theirs" for i in range(12)}
    assert lines[0]["source"] == "label/judged/evaluate[1]"
    found = any_file.FORMAT.read(artifact.path / "preferences.jsonl", any_file.FORMAT.Settings())
    assert sum(found.counts.values()) == 12 and not found.dropped


@pytest.mark.parametrize("body", [{"id": "p1", "said": "both"}, {"id": "p99", "said": "left"}, {"said": "left"}])
def test_what_is_no_verdict_is_refused(files: Files, body: dict):
    with pytest.raises(Refused, match="expected the id of a pair"):
        labelling.keep(files, "judged", {"step": "evaluate[1]", **body})
    with pytest.raises(Refused, match="no verdict yet"):
        labelling.finish(files, "judged", {})


def test_a_run_without_an_evaluation(tmp_path: Path):
    world.Maker(tmp_path, "bare").save()
    with pytest.raises(NotHere, match="run bare has no evaluation"):
        labelling.pairs(Files(tmp_path), "bare")
