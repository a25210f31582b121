"""The short form of the kill series: one run, six kills. The long form is `make chaos`."""

from __future__ import annotations

import random
import signal
import subprocess
import sys

import psutil
import pytest

from tests.chaos import kills, profiles, small

pytestmark = pytest.mark.slow


def test_a_run_killed_at_random_makes_what_an_undisturbed_one_makes(reference, forking, tmp_path):
    """Command, driver, a supervisor or a stage, or all of them at once, by SIGKILL; the same command after each."""
    rows, undisturbed = reference
    seen = kills.one_run("short", 3, 0, tmp_path, undisturbed, rows, forking)
    assert (seen.faults, seen.differing) == ([], [])
    assert len(seen.kills) >= 3
    assert all(kill["hit"] and kill["during"] and kill["code"] for kill in seen.kills)


def test_processes_are_known_by_what_they_are(tmp_path):
    """By their command lines and environment; one that has none left, by who started it."""
    code = "import sys, time; print(1, flush=True); time.sleep(60)"
    server = "vllm.entrypoints.openai.api_server"
    lines = {"driver": ["flows.driver"], "outer supervisor": ["pipeline.supervisor", "--", "flows.driver"],
             "engine": [server], "keeper": ["pipeline.engines.vllm.keeper", "--", server],
             "rank": ["pipeline.worker"], "stage": ["pipeline.worker"]}
    started = {kind: subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE,
        env={small.MARK: "m", **({"RANK": "0"} if kind == "rank" else {})}) for kind, words in lines.items()}
    bare = subprocess.Popen(["env", "-", sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        for process in (*started.values(), bare):
            process.stdout.readline()
        found = {p.pid: profiles.kind_of(p) for p in small.marked("m")}
        assert found == {process.pid: kind for kind, process in started.items()}
        assert small.until_nobody("nobody", None, 0.1, [psutil.Process(bare.pid)])[1] != []
        assert small.running(tmp_path, "nobody") == small.START
        rng = random.Random(1)
        hit = kills.kill("rank", "m", None, rng, tmp_path)
        assert (hit["victim"], hit["hit"], started["rank"].wait(10)) == ("rank", ["rank"], -signal.SIGKILL)
        assert len(kills.kill("everything", "m", None, rng, tmp_path)["hit"]) == len(lines) - 1
    finally:
        for process in (*started.values(), bare):
            process.kill()
            process.wait()


def test_what_a_run_left_is_compared(reference, tmp_path):
    """Each check of the series finds what it is there for."""
    import shutil

    _, undisturbed = reference
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
