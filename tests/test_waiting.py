"""An engine that waits: with a small server instead of vLLM. It ends by itself whoever is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipeline import supervisor, waiting
from tests.engines.vllm.test_keeper import SERVER, all_gone, family, serves, until

Start = Callable[[], tuple[subprocess.Popen, str]]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return waiting.folder(tmp_path / "workspace")


@pytest.fixture
def start(tmp_path: Path, place: Path) -> Iterator[Start]:
    """start() -> a keeper that is kept at `place`, serving, and the server's address."""
    started = []

    def one() -> tuple[subprocess.Popen, str]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        script = tmp_path / "server.py"
        script.write_text(SERVER)
        process = subprocess.Popen([
            sys.executable, "-m", "pipeline.engines.vllm.keeper", "--url", f"http://127.0.0.1:{port}", "--kept",
            str(place), "--grace", "2", "--", sys.executable, str(script), port])
        started.append(process)
        until(lambda: serves(f"http://127.0.0.1:{port}"))
        return process, f"http://127.0.0.1:{port}"

    yield one
    for process in started:
        if process.poll() is None:
            process.kill()


def record(*keepers: subprocess.Popen, seconds: float = 600.0) -> dict:
    pids = [keeper.pid for keeper in keepers]
    return {"seconds": seconds, "pids": pids, "key": "secret", "host": socket.gethostname()}


def held(place: Path):
    lock = waiting.claim(place)
    assert lock is not None
    return lock


def test_it_serves_the_run_that_holds_the_lock_and_ends_with_a_run_that_was_killed(start, place):
    """A killed run leaves no record; the kernel frees its lock."""
    with held(place):
        keeper, _ = start()
        everything = family(keeper)
        time.sleep(1.2)
        assert keeper.poll() is None
    assert keeper.wait(20) == waiting.TOLD
    assert all_gone(everything[1:])


def test_it_waits_so_many_seconds_and_ends_by_itself_with_its_record(start, place):
    with held(place):
        keeper, url = start()
        everything = family(keeper)
        waiting.leave(place, record(keeper, seconds=2.0))
    time.sleep(1.0)
    assert keeper.poll() is None and serves(url)
    assert keeper.wait(20) == waiting.TOLD
    assert all_gone(everything[1:])
    assert waiting.read(place) is None


def test_taken_up_it_serves_on_and_ends_with_the_run_that_took_it(start, place):
    with held(place):
        keeper, url = start()
        waiting.leave(place, record(keeper, seconds=1.5))
    with held(place):
        assert waiting.take(place) == record(keeper, seconds=1.5)
        assert waiting.read(place) is None
        time.sleep(2.5)
        assert keeper.poll() is None and serves(url)
    assert keeper.wait(20) == waiting.TOLD


def test_replicas_end_together(start, place):
    with held(place):
        (first, _), (second, _) = start(), start()
        waiting.leave(place, record(first, second, seconds=0.5))
    assert {first.wait(20), second.wait(20)} == {waiting.TOLD}


def test_a_record_that_names_others_holds_none(start, place):
    """As after a restart of the machine, with this keeper's run killed."""
    with held(place):
        keeper, _ = start()
        waiting.leave(place, {**record(keeper), "pids": [1]})
    assert keeper.wait(20) == waiting.TOLD


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_kill_9_while_it_waits_leaves_no_orphan(start, place, killed):
    """Of keeper, supervisor or server. A server is served again by its keeper, so that one is told to end then."""
    with held(place):
        keeper, url = start()
        time.sleep(1.5)  # it has seen it serve
        everything = family(keeper)
        waiting.leave(place, record(keeper))
    everything[killed].kill()
    if killed:
        until(lambda: keeper.poll() is not None or (serves(url) and len(family(keeper)) == 4))
        with held(place):
            waiting.stop(waiting.keepers(place, record(keeper)))
    assert all_gone(everything)
    keeper.wait(20)


def test_ended_at_once_by_who_holds_the_lock_also_where_it_hears_nothing(start, place, monkeypatch):
    monkeypatch.setattr(waiting, "_END_SECONDS", 1.0)
    with held(place):
        keeper, _ = start()
        everything = family(keeper)
        keeper.send_signal(signal.SIGSTOP)
        waiting.stop(waiting.keepers(place, record(keeper)))
        assert all_gone(everything)


def test_no_other_process_is_taken_for_a_keeper(place):
    """Pids are used again: this test's own is never ended."""
    mine = waiting.Keeper(os.getpid(), place)
    assert mine.poll() == waiting.TOLD
    mine.terminate()
    waiting.stop([mine])
    assert waiting.Keeper(2**22 + 1, place).poll() == waiting.TOLD


def test_the_record_is_its_owners_alone(place):
    before = os.umask(0)
    try:
        with held(place):
            waiting.leave(place, {"seconds": 1.0, "pids": [], "key": "secret"})
    finally:
        os.umask(before)
    assert oct(place.stat().st_mode)[-3:] == "700"
    assert oct(waiting.record_path(place).stat().st_mode)[-3:] == "600"


def test_one_lock_and_a_record_of_somebody_else_or_torn_is_none(place, monkeypatch):
    with held(place):
        assert waiting.claim(place) is None
        waiting.leave(place, record(seconds=1.0))
        assert waiting.read(place) == record(seconds=1.0)
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        assert waiting.read(place) is None
        monkeypatch.undo()
        monkeypatch.setattr(socket, "gethostname", lambda: "another machine")
        assert waiting.read(place) is None
        monkeypatch.undo()
        path = waiting.record_path(place)
        for torn in (path.read_text()[:-4], path.read_text().replace("1.0", "9.0"), "[]", "{}"):
            path.write_text(torn)
            assert waiting.read(place) is None


@pytest.mark.parametrize(("code", "named", "outlives"), [(0, True, True), (1, True, False), (0, False, False)])
def test_a_supervisor_spares_what_waits_only_behind_a_run_that_ended_well(tmp_path, code, named, outlives):
    """named: the process says on its command line that it is kept there, as keepers do."""
    place = waiting.folder(tmp_path)
    place.mkdir()
    words = [str(place)] if named else []
    child = "import subprocess, time; subprocess.Popen(['sleep', '60']); print('up', flush=True); time.sleep(60)"
    script = "\n".join([
        "import subprocess, sys",
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}, *{words!r}], start_new_session=True, stdout=-1)",
        "p.stdout.readline()",
        "from pathlib import Path; from pipeline import waiting",
        f"waiting.leave(Path({str(place)!r}), {{'seconds': 60, 'pids': [p.pid]}}); sys.exit({code})"])
    command = supervisor.command_line([sys.executable, "-c", script], log=None, grace=2.0, spare=place)
    assert subprocess.run(command, timeout=60).returncode == code
    (pid,) = (waiting.read(place) or {})["pids"]
    alive = psutil.pid_exists(pid)
    if alive:
        root = psutil.Process(pid)
        everything = [*root.children(recursive=True), root]
        assert len(everything) == 2  # what it started, too
        for process in everything:
            process.kill()
    assert alive == outlives
