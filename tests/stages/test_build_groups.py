"""The build_groups stage: what is kept, what is dropped and why, and the numbers of the kept groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import tables
from pipeline.build import build, problems_of
from pipeline.records import LENGTH, Completion, Group, Message, UserError
from pipeline.stage import Context, Reporter
from pipeline.stages import build_groups


def group_of(name: str, *samples: tuple[str, float], cut: bool = False) -> Group:
    completions = tuple(
        Completion(text, tuple(map(ord, text)), LENGTH if cut else "stop", {"reward": value}, sample=i)
        for i, (text, value) in enumerate(samples)
    )
    return Group(name, (Message("user", "hi"),), completions, (5,), iteration=2)


GROUPS = [
    group_of("p0", ("aa", 1.0), ("bbbb", 4.0), ("c", -2.0)),
    group_of("p1", ("aa", 1.0), ("bb", 1.0)),
    group_of("p2", ("a", 0.5), ("a", 0.6)),
    group_of("p3", ("aaa", 2.0), ("b", 0.0), cut=True),
    group_of("p4"),
]


def context_of(tmp_path: Path, groups: list[Group], module: str) -> Context:
    tables.write(tmp_path / "in", groups, part_size=2)
    settings = build(build_groups.Settings, {"selection": {"module": f"pipeline.selection.{module}"}})
    inputs = {"groups": (tmp_path / "in",)}
    return Context(settings, build_groups.Runtime(), inputs, {}, tmp_path / "work", 0, Reporter())


def test_pairs_and_their_account(tmp_path: Path) -> None:
    """Kept: p0 as b > c (4 and -2, lengths 4 and 1), p3 as a > b (2 and 0, lengths 3 and 1)."""
    context = context_of(tmp_path, GROUPS, "best_worst")
    build_groups.run(context)
    made = list(tables.read(context.out / "groups"))
    assert [(g.id, [c.text for c in g.completions]) for g in made] == [("p0", ["bbbb", "c"]), ("p3", ["aaa", "b"])]
    assert context.report.dropped == {"tied_scores": 1, "duplicates": 1, "too_few_samples": 1}
    assert context.report.counts == {
        "read": 5, "kept": 2, "margin_mean": 4.0, "chosen_score_mean": 3.0, "rejected_score_mean": -1.0,
        "chosen_length_mean": 3.5, "rejected_length_mean": 1.0, "chosen_truncated_share": 0.5, "candidates_mean": 1.0,
    }
    assert context.report.counts["read"] == context.report.counts["kept"] + sum(context.report.dropped.values())


def test_ranked_candidates(tmp_path: Path) -> None:
    """p0's rejected side is the mean of 1 and -2: margin 4.5; with p3's 2 the mean margin is 3.25."""
    context = context_of(tmp_path, GROUPS, "best_rest")
    build_groups.run(context)
    assert [[c.text for c in g.completions] for g in tables.read(context.out / "groups")] == [
        ["bbbb", "aa", "c"], ["aaa", "b"]
    ]
    assert context.report.counts["margin_mean"] == pytest.approx(3.25)
    assert context.report.counts["candidates_mean"] == 1.5


def test_nothing_left_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of the 3 prompts gives a group \(1 duplicates, 1 tied_scores, 1 too"):
        build_groups.run(context_of(tmp_path, [GROUPS[1], GROUPS[2], GROUPS[4]], "best_worst"))


def test_a_bad_selection_is_found_while_planning() -> None:
    (problem,) = problems_of(build_groups.Settings, {"selection": {"module": "pipeline.selection.best_wurst"}}, "s")
    assert problem.startswith("s.selection.module: no module 'pipeline.selection.best_wurst' (did you mean")
