"""Samples sorted and filtered: values worked out by hand on four prompts of two answers."""

from __future__ import annotations

import json
import math

import pytest

from flows.dashboard import ordering
from flows.dashboard.files import Files, NotHere
from flows.dashboard.ordering import Wish
from pipeline.records import Completion, Group, Message
from tests.flows.dashboard import world


def group(name: str, *answers: tuple[float, float, int, str]) -> Group:
    """Answers of (reward, gold, tokens, how they ended)."""
    made = tuple(Completion(f"{name}{k}", tuple(range(tokens)), finish, {"reward": reward, "gold": gold}, sample=k)
                 for k, (reward, gold, tokens, finish) in enumerate(answers))
    return Group(name, (Message("user", f"Question {name}?"),), made, iteration=1)


NOW = [group("a", (1.0, 0.0, 10, "stop"), (3.0, 1.0, 30, "stop")),
       group("b", (0.0, 5.0, 8, "length"), (8.0, 1.0, 8, "stop")),
       group("c", (2.0, 2.0, 1, "stop"), (2.5, 3.0, 2, "stop")),
       group("d", (math.nan, 0.0, 4, "length"), (-1.0, 0.0, 4, "length"))]
BEFORE = [group("b", (1.0, 0.0, 5, "stop")), group("a", (4.0, 0.0, 5, "stop"))]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    place = tmp_path_factory.mktemp("ordering")
    run = world.Maker(place, "sorted")
    run.step("generate[1]", "generate", {}, {}, world.bare(BEFORE))
    run.step("score[1]", "score", {"groups": "generate[1]/groups"}, {}, BEFORE)
    run.step("generate[2]", "generate", {}, {}, world.bare(NOW), files=["another:0"])
    run.step("score[2]", "score", {"groups": "generate[2]/groups"}, {}, NOW)
    run.step("pairs[2]", "build_groups", {"groups": "generate[2]/groups"}, {}, NOW[:3])
    run.save()
    return Files(place)


def of(files: Files, step: str = "score[2]", **wish) -> list[tuple[str, float | None]]:
    found = ordering.page(files, "sorted", step, "groups", 0, 10, False, Wish(**wish))
    return [(g["id"], g["measure"]) for g in found["groups"]]


def test_by_each_number(files: Files):
    """Prompt d has one finite reward; its margin is then 0, and it has no pair that two scores could order."""
    assert of(files, by="score", score="reward") == [("b", 4.0), ("c", 2.25), ("a", 2.0), ("d", -1.0)]
    assert of(files, by="margin", score="reward") == [("b", 8.0), ("a", 2.0), ("c", 0.5), ("d", 0.0)]
    assert of(files, by="length") == [("a", 20.0), ("b", 8.0), ("d", 4.0), ("c", 1.5)]
    assert of(files, by="truncated") == [("d", 2.0), ("b", 1.0), ("a", 0.0), ("c", 0.0)]
    assert of(files, by="disagreement", score="reward") == [("b", 1.0), ("a", 0.0), ("c", 0.0)]


def test_the_change_since_the_iteration_before(files: Files):
    """b: 4 less 1; a: 2 less 4; c and d were not sampled before."""
    assert of(files, by="change", score="reward") == [("b", 3.0), ("a", -2.0)]
    with pytest.raises(NotHere, match=r"score\[0\]"):
        of(files, "score[1]", by="change", score="reward")


def test_a_range_the_cut_ones_and_the_other_way_round(files: Files):
    assert of(files, by="score", score="reward", low=2.0, high=3.0, rising=True) == [("a", 2.0), ("c", 2.25)]
    assert of(files, only="cut") == [("b", None), ("d", None)]
    assert of(files, only="cut", by="length", rising=True) == [("d", 4.0), ("b", 8.0)]


def test_labelled_ones(files: Files):
    (files.run_path("sorted") / "sample-notes.json").write_text(json.dumps({"score[2]": {
        "c": {"labels": ["odd"], "note": ""}, "a": {"labels": [], "note": "look"}}}))
    assert [name for name, _ in of(files, only="noted")] == ["a", "c"]
    assert [name for name, _ in of(files, only="odd")] == ["c"]


def test_scores_that_completions_carry_themselves(files: Files):
    assert of(files, "pairs[2]", by="score", score="gold") == [("b", 3.0), ("c", 2.5), ("a", 0.5)]


def test_pages_of_a_selection(files: Files):
    found = ordering.page(files, "sorted", "score[2]", "groups", 1, 2, False, Wish(by="length"))
    assert [g["id"] for g in found["groups"]] == ["b", "d"]
    assert (found["matching"], found["by_scores"]) == (4, ["gold", "reward"])


def test_the_selection_as_json_lines(files: Files):
    rows = [json.loads(line) for line in ordering.lines(files, "sorted", "score[2]", "groups", Wish(only="cut"))]
    assert [row["id"] for row in rows] == ["b", "d"]
    assert rows[0]["completions"][1]["scores"] == {"reward": 8.0, "gold": 1.0} and rows[0]["run"] == "sorted"


def test_an_order_nobody_knows(files: Files):
    with pytest.raises(NotHere, match="cannot be sorted by 'beauty': expected one of score, margin"):
        of(files, by="beauty")
