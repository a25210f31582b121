"""Steps beside each other, with real processes: what they make is what they make one after the other."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flows import inspection
from flows.dashboard import overview
from flows.dashboard.files import Files
from flows.driver import Driver
from pipeline import plan, runs, store
from pipeline.files import parsed_lines
from tests.chaos import small

NOWHERE = {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
RULES = """
import os, pathlib, time

def waits(messages, text):
    here = pathlib.Path(os.environ["MEETING"])
    (here / f"{os.getpid()}").touch()
    while len(list(here.iterdir())) < 2:  # until another step is there, too
        time.sleep(0.02)
    return float(len(text))

def lingers(messages, text):
    time.sleep(float(os.environ.get("LINGERS", "0.1")))
    return float(len(text))

def sour(messages, text):
    raise ValueError("sour")
"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """make(jobs, left=, right=) -> a workspace whose run "shown" imports five rows, scores them twice by these rules,
    then a third time: data, left, right, last."""
    world = tmp_path / "world"
    (tmp_path / "meeting").mkdir()
    world.mkdir()
    (world / "beside_rules.py").write_text(RULES)
    (world / "sft.jsonl").write_text("".join(
        json.dumps({"prompt": f"question {i}", "completion": f"answer {i}"}) + "\n" for i in range(5)))
    monkeypatch.syspath_prepend(world)
    monkeypatch.setenv("PYTHONPATH", f"{world}:{small.ROOT}")
    monkeypatch.setenv("MEETING", str(tmp_path / "meeting"))

    def workspace(jobs: int, left: str = "lingers", right: str = "lingers", name: str = "workspace") -> Path:
        rows_of = {"module": "pipeline.formats.jsonl", "sft": "sft.jsonl", "shares": {"unlabeled": 0, "eval": 0}}

        def scored(rule: str, score: str) -> dict:
            return {"stage": "score", "inputs": {"groups": "data/sft"}, "settings": {
                "name": score, "reward": {"module": "pipeline.rewards.rule", "function": f"beside_rules.{rule}"}}}

        config = {
            "recipe": {"once": {"data": {"stage": "import_data"}, "left": scored(left, "left"),
                                "right": scored(right, "right"), "last": scored("lingers", "last")}},
            "stage": {"import_data": {"settings": {"format": rows_of}, "runtime": {"root": str(world)}}, "score": {}},
            "iterations": 1, "seed": 0, "tracking": {}, "model": {}, "choices": {"recipe": "beside"},
            "engine": {"module": "pipeline.engines.transformers"},
            "hardware": {"grace_seconds": 5.0, "timeout_minutes": 2.0, "devices": None, "jobs": jobs,
                         "warm_workers": False, "training": {"device": "cpu", "processes": 1}}}
        fresh = {"iteration": 0, "key": None, "state": "waiting", "inputs": []}
        steps = [{"name": s.name, "stage": s.stage, **fresh} for s in plan.expand(config)]
        runs.save(tmp_path / name, runs.Run("shown", config, [], {}, steps, runs.RUNNING, 1.0))
        return tmp_path / name

    return workspace


def driver(workspace: Path) -> Driver:
    run = runs.load(workspace, "shown")
    return Driver(workspace, run, plan.steps_of(run))


def digests(workspace: Path) -> dict[str, str]:
    """Kind and key of every artifact -> the digest of its bytes."""
    return {f"{one.kind}/{one.key}": one.digest() for one in store.artifacts(workspace)}


def spans(workspace: Path, run: str = "shown") -> dict[str, tuple[float, float]]:
    """Step -> when it started and ended, of those that were computed."""
    began, found = {}, {}
    for event in parsed_lines((runs.folder(workspace, run) / "events.jsonl").read_bytes()):
        if event["event"] == "started":
            began[event["step"]] = event["time"]
        elif event["event"] == "finished":
            found[event["step"]] = (began[event["step"]], event["time"])
    return found


def together(found: dict[str, tuple[float, float]]) -> set[tuple[str, str]]:
    return {(a, b) for a in found for b in found if a < b
            and found[a][0] < found[b][1] and found[b][0] < found[a][1]}


def states(workspace: Path) -> dict[str, str]:
    return {step["name"]: step["state"] for step in runs.load(workspace, "shown").steps}


def test_two_steps_meet_and_make_the_same_bytes_as_one_after_the_other(make, warm, monkeypatch):
    """`waits` scores nothing until two processes score, so alone it would wait for ever."""
    for name in ("ALIGNLOOP_WARM",):
        monkeypatch.setenv(name, warm[name])
    monkeypatch.setenv("PYTHONPATH", f"{os.environ['PYTHONPATH']}:{warm['PYTHONPATH']}")
    beside = make(2, "waits", "waits")
    driver(beside).walk()
    assert together(spans(beside)) >= {("left", "right")}
    alone = make(1, "waits", "waits", "alone")  # both have been there
    driver(alone).walk()
    assert together(spans(alone)) == set() and list(spans(alone)) == ["data", "left", "right", "last"]
    assert digests(alone) == digests(beside) and len(digests(alone)) == 4
    again = driver(beside)
    again.walk()
    assert set(states(beside).values()) == {"cached"} and again.run.outcome == runs.DONE
    assert {"progress-left.json", "progress-right.json"} <= {p.name for p in runs.folder(beside, "shown").iterdir()}
    assert runs.progress(beside, "shown", "left")["done"] == 5 == runs.progress(alone, "shown", "last")["done"]


def test_one_fails_the_other_comes_to_its_end_and_is_kept(make, warm, monkeypatch, capsys):
    """Nothing is started after it. What failed is told at once, and is what the run ends with."""
    monkeypatch.setenv("ALIGNLOOP_WARM", warm["ALIGNLOOP_WARM"])
    monkeypatch.setenv("PYTHONPATH", f"{os.environ['PYTHONPATH']}:{warm['PYTHONPATH']}")
    monkeypatch.setenv("LINGERS", "0.6")
    workspace = make(2, left="sour", right="lingers")
    with pytest.raises(Exception, match=r"(?s)left failed: ValueError: sour"):
        driver(workspace).walk()
    assert states(workspace) == {"data": "done", "left": "failed", "right": "done", "last": "waiting"}
    assert runs.load(workspace, "shown").outcome == runs.FAILED
    assert "note: left failed, nothing more is started; right goes on to the end and will be kept" in (
        " ".join(capsys.readouterr().out.split()))


def _start(workspace: Path, **more: str) -> subprocess.Popen[str]:
    command = [os.sys.executable, "-m", "flows.driver", str(workspace), "shown", ""]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env={**os.environ, **NOWHERE, **more})


def _both_run(workspace: Path, process: subprocess.Popen[str], steps: set[str]) -> list[psutil.Process]:
    """Every process of the driver once the steps' workers score."""
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        if runs.progress_path(workspace, "shown", "left").exists() and {
                name for name, state in states(workspace).items() if state == "running"} == steps:
            return psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_or_killed_with_two_running_it_goes_on_to_the_same_bytes(make, number, capsys):
    """By SIGTERM both are interrupted and say so; after kill -9 of the driver nothing of it is left either. Until then
    `align status` and the page show both."""
    workspace = make(2)
    process = _start(workspace, LINGERS="30")
    family = _both_run(workspace, process, {"left", "right"})
    inspection.status(str(workspace), "shown")
    shown = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert ["left", "running"] in shown and ["right", "running"] in shown
    page = overview.one_run(Files(workspace), "shown")
    assert [step["name"] for step in page["steps"] if step["state"] == "running"] == ["left", "right"]
    assert overview.all_runs(Files(workspace))["runs"][0]["current"] == "left, right"
    process.send_signal(number)
    process.communicate(timeout=30)
    _, left = psutil.wait_procs(family, timeout=20)
    assert left == []
    if number == signal.SIGTERM:
        assert process.returncode == 143 and runs.load(workspace, "shown").outcome == runs.INTERRUPTED
        assert states(workspace) == {
            "data": "done", "left": "interrupted", "right": "interrupted", "last": "waiting"}
    else:
        assert runs.outcome(workspace, runs.load(workspace, "shown")) == runs.INTERRUPTED
    again = _start(workspace)
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0, output
    assert set(states(workspace).values()) == {"done", "cached"}
    alone = make(1, name="alone")
    driver(alone).walk()
    assert digests(workspace) == digests(alone)


@pytest.mark.long
def test_a_loop_on_the_built_in_world_makes_the_same_bytes_beside_and_killed(tmp_path):
    """PCO with two iterations: with one job, with two, and with two and kill -9 of everything while two steps run."""
    rows = small.world(tmp_path / "rows")

    def go(name: str, jobs: int) -> subprocess.Popen[bytes]:
        (tmp_path / name).mkdir(exist_ok=True)
        words = small.command(tmp_path / name / "ws", rows, "engine=transformers", f"hardware.jobs={jobs}")
        log = (tmp_path / name / "out.txt").open("ab")
        return subprocess.Popen(words, env=small.environment(tmp_path / name, name, None, **NOWHERE), stdout=log,
                                stderr=log, start_new_session=True)

    alone, beside, killed = go("alone", 1), None, None
    assert alone.wait(600) == 0
    beside = go("beside", 2)
    assert beside.wait(600) == 0
    assert together(spans(tmp_path / "alone/ws", "small")) == set()
    assert together(spans(tmp_path / "beside/ws", "small")) != set()
    killed, deaths = go("killed", 2), 0
    while killed.poll() is None:
        record = runs.load(tmp_path / "killed/ws", "small")
        running = sum(step["state"] == "running" for step in record.steps) if record else 0
        if running == 2 and deaths < 3:
            time.sleep(0.4)
            for process in small.marked("killed"):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            killed.wait(60)
            killed, deaths = go("killed", 2), deaths + 1
        time.sleep(0.1)
    assert killed.returncode == 0 and deaths == 3
    wanted = digests(tmp_path / "alone/ws")
    assert len(wanted) > 15
    assert digests(tmp_path / "beside/ws") == wanted == digests(tmp_path / "killed/ws")
