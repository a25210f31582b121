"""The engine that waits for the workspace's next run: with an engine that notes what it is told, and with vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from flows import kept_engine
from flows.kept_engine import KeptEngine
from pipeline import runs, store, waiting
from pipeline.config import load_part
from pipeline.engines.engine import Backend, Keeping

MODEL = Path("/model")


@dataclass(frozen=True)
class Settings:
    seconds: float = 600.0
    kind: str = "this"
    url: bool = False


class Service:
    """Its keeper is a process that sleeps and names the folder, as keepers do."""

    def __init__(self, told: list[str], place: Path) -> None:
        self.told, self.running, self.environment = told, True, {}
        wait = "import time; print('up', flush=True); time.sleep(600)"
        self.keeper = subprocess.Popen([sys.executable, "-c", wait, str(place)], stdout=subprocess.PIPE)
        assert self.keeper.stdout is not None
        self.keeper.stdout.readline()

    def alive(self) -> bool:
        return self.running

    def rest(self) -> None:
        self.told.append("rest")


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def run(told, monkeypatch, tmp_path):
    """run(**settings) -> a new run's part in the engine of one workspace. `made` has the services it started."""
    made: list[Service] = []

    def begin(kind: str, place: Path) -> Service:
        told.append(kind)
        made.append(Service(told, place))
        return made[-1]

    def resume(record, model, log, settings, place) -> Service:
        if record["kind"] != settings.kind:
            raise waiting.Unusable(f"it is of kind {record['kind']}")
        told.append("resumed")
        return made[-1]

    keeping = Keeping(
        lambda s: s.seconds, lambda model, log, settings, place: begin("may wait", place),
        lambda service, model, s: {"seconds": s.seconds, "pids": [service.keeper.pid], "kind": s.kind,
                                       "log": "its.log"}, resume)

    def make(keeps: bool = True, **settings) -> KeptEngine:
        module = types.ModuleType("waiting_engine")
        module.BACKEND = Backend(Settings, lambda model, settings, log: None,
                                 lambda model, log, settings: begin("ends with its run", tmp_path),
                                 keeping=keeping if keeps else None)
        monkeypatch.setitem(sys.modules, "waiting_engine", module)
        part = load_part({"module": "waiting_engine", **settings}, "engine", Backend)
        return KeptEngine(part, tmp_path / "w", tmp_path / "engine.log")

    make.made = made
    yield make
    for service in made:
        service.keeper.kill()
        service.keeper.wait()


def whole(engine: KeptEngine, awake: bool = False) -> bool:
    """A run with it, ended well -> whether the engine waits."""
    waits = engine.leave(engine.begin(MODEL), awake)
    engine.give_up()
    return waits


def said(capsys) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_the_next_run_goes_on_with_it_and_the_screen_says_how_to_end_it(run, told, tmp_path, capsys):
    assert whole(run())
    assert f"the engine stays for 600 s, end it with: align stop --engine workspace={tmp_path / 'w'}" in said(capsys)
    second = run()
    second.begin(MODEL)
    assert (tmp_path / "engine.log").read_text() == "the engine of an earlier run goes on; its log: its.log\n"
    assert second.resumed and told == ["may wait", "resumed"]
    assert waiting.read(waiting.folder(tmp_path / "w")) is None  # nobody else can have it
    second.give_up()


def test_without_the_setting_nothing_waits_and_nothing_is_written(run, told, tmp_path):
    assert not whole(run(seconds=0.0))
    assert told == ["ends with its run"] and not (tmp_path / "w").exists()


def test_a_run_without_the_setting_takes_it_up_and_does_not_leave_it(run, told):
    whole(run())
    last = run(seconds=0.0)
    assert not last.leave(last.begin(MODEL), False)
    assert last.resumed and told == ["may wait", "resumed"]
    last.give_up()


@pytest.mark.parametrize(("settings", "why"), [
    ({"kind": "other"}, "it is of kind this"), ({"keeps": False}, "this run needs another one")])
def test_one_that_will_not_do_is_ended_first_and_screen_and_log_say_so(run, told, tmp_path, capsys, settings, why):
    whole(run())
    run(**settings).begin(MODEL)
    assert run.made[0].keeper.wait(5) == -15
    text = f"the engine that waited for this run is not used ({why}); it starts one cold"
    assert text in said(capsys) and text in (tmp_path / "engine.log").read_text()
    assert told == ["may wait", "may wait" if settings.get("kind") else "ends with its run"]


def test_a_run_whose_steps_sample_by_themselves_ends_it(run, tmp_path, capsys):
    whole(run())
    run(keeps=False).clear()
    assert run.made[0].keeper.wait(5) == -15
    assert "the engine that waited is ended: this run takes another one" in said(capsys)


def test_of_two_runs_at_once_the_second_has_its_own(run, told, capsys):
    whole(run())
    first, second = run(), run()
    first.begin(MODEL)
    assert not whole(second)
    assert told == ["may wait", "resumed", "ends with its run"]
    assert "another run, or user, has the engine of this workspace; this one starts its own" in said(capsys)
    first.give_up()


def test_started_again_in_the_same_run_it_may_wait_again(run, told):
    engine = run()
    engine.begin(MODEL).running = False
    assert not engine.leave(run.made[0], False)  # it has ended
    assert engine.leave(engine.begin(MODEL), False)
    assert told == ["may wait", "may wait"]
    engine.give_up()


def test_where_others_need_the_device_it_sleeps_while_it_waits(run, told):
    whole(run(), awake=True)
    assert told == ["may wait", "rest"]


def test_status_tells_of_it_and_stop_ends_it(run, tmp_path, capsys):
    kept_engine.tell(tmp_path / "w")
    assert kept_engine.stop(tmp_path / "w") == 0
    assert said(capsys) == "no engine waits"
    whole(run())
    capsys.readouterr()
    kept_engine.tell(tmp_path / "w")
    assert "an engine waits for the next run, 600 s from the end of the last; end it with" in said(capsys)
    assert kept_engine.stop(tmp_path / "w") == 0
    assert run.made[0].keeper.wait(5) == -15
    assert said(capsys) == "the engine has ended"


def keepers(place: Path) -> dict[int, list[int]]:
    """pid of each keeper there -> those of the processes below it."""
    found = [p for p in psutil.process_iter() if str(place) in _words(p)]
    return {p.pid: sorted(c.pid for c in p.children(recursive=True)) for p in found}


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() if "--kept" in process.cmdline() else []
    except psutil.Error:
        return []


@pytest.mark.long
@pytest.mark.slow
def test_the_second_of_two_runs_starts_no_vllm_and_samples_the_same_bytes(
    command: Callable[..., list[str]], warm: dict[str, str], prefect: dict[str, str], tiny_model: Path, tmp_path: Path
):
    rows = [{"question_id": i, "category": "writing", "turns": [f"question {i}", "and?"]} for i in (81, 82, 83)]
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept, alone = tmp_path / "kept", tmp_path / "alone"

    def align(workspace: Path, name: str, *words: str) -> str:
        done = subprocess.run(command(
            "run", "recipe=benchmark", "data=mt_bench", f"data.root={tmp_path}", "data.model=tiny", "model=path",
            f"model.path={tiny_model}", "model.max_prompt_tokens=150", "model.max_completion_tokens=100",
            "sampling.max_tokens=12", "sampling.temperatures=[1.0]", "engine.max_sequences=64", f"run={name}",
            f"workspace={workspace}", *words),
            capture_output=True, text=True, env={**os.environ, **warm, **prefect}, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def digests(workspace: Path, name: str) -> dict[str, str]:
        record = runs.load(workspace, name)
        assert record is not None
        found = {s["name"]: store.find(workspace, s["stage"], s["key"]) for s in record.steps}
        return {f"{step} {artifact.key}": json.dumps(artifact.manifest["files"])
                for step, artifact in found.items() if artifact}

    place = waiting.folder(kept)
    try:
        assert "the engine stays for 300 s" in align(kept, "first", "engine.keep_seconds=300")
        before = keepers(place)
        assert len(before) == 1 and all(before.values())
        assert "the engine of an earlier run goes on" in align(kept, "second", "engine.keep_seconds=300", "seed=1")
        assert keepers(place) == before
        (line,) = (runs.folder(kept, "second") / "logs" / "engine.log").read_text().splitlines()
        assert line.endswith(f"its log: {runs.folder(kept, 'first') / 'logs' / 'engine.log'}")
        secret = (waiting.read(place) or {})["key"]
        texts = [p.read_text(errors="replace") for p in kept.rglob("*") if p.is_file() and p.parent != place]
        assert not [text for text in texts if secret in text]
    finally:
        subprocess.run(command("stop", "--engine", f"workspace={kept}"), check=True)
    assert keepers(place) == {}
    align(alone, "second", "seed=1")
    assert digests(kept, "second") == digests(alone, "second")
    assert not waiting.folder(alone).exists()
