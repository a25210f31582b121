"""The short form of the kill series: one run, six kills. The long form is `make chaos`."""

from __future__ import annotations

import pytest

from tests.chaos import kills, small

pytestmark = pytest.mark.slow


def test_a_run_killed_at_random_makes_what_an_undisturbed_one_makes(reference, forking, tmp_path):
    """Command, driver, a supervisor or a stage, or all of them at once, by SIGKILL; the same command after each."""
    rows, undisturbed, took = reference
    seen = kills.one_run("plain", 3, 0, tmp_path, undisturbed, rows, took, forking)
    assert (seen.faults, seen.differing) == ([], [])
    assert len(seen.kills) >= 3


def test_what_a_run_left_is_compared(reference, tmp_path):
    """Each check of the series finds what it is there for."""
    import shutil

    _, undisturbed, _ = reference
    copy = tmp_path / "workspace"
    shutil.copytree(undisturbed, copy, symlinks=True)
    assert small.differing(copy, undisturbed) == [] and small.odd_numbers(copy, undisturbed, 0) == []
    metrics = copy / "runs/small/metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([*lines, lines[0], ""]))
    assert [line.rsplit(" ", 1)[1] for line in small.odd_numbers(copy, undisturbed, 0)] == ["twice"]
    metrics.write_text("\n".join([*lines[1:], ""]))
    assert "1 lines lacking" in small.odd_numbers(copy, undisturbed, 0)[0]
    assert small.odd_numbers(copy, undisturbed, 1) == []
    left = copy / "artifacts/score/.work-x/.a.1.tmp"
    left.parent.mkdir()
    left.touch()
    (tmp_path / "tmp").mkdir()
    assert f"{left} is left" in small.left_over(copy, tmp_path / "tmp", True)
    part = left.parent / "out/groups/part-00000.parquet"
    part.parent.mkdir(parents=True)
    part.write_text("a")
    before = small.parts(copy)
    part.with_name("new").write_text("a")
    part.with_name("new").replace(part)
    assert small.again(before, small.parts(copy)) == [f"{part} was made again"]
