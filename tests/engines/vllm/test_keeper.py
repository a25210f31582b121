"""The keeper with a small server instead of vLLM: it comes back, it gives up, it leaves nothing behind."""

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

SERVER = """
import http.server, os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(os.getpid()).encode())
        if self.path == "/die":
            self.wfile.flush()
            os.kill(os.getpid(), 9)
    log_message = lambda *_: None
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def get(url: str) -> str:
    import urllib.request

    with urllib.request.urlopen(url, timeout=5) as response:
        return str(response.read().decode())


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def serves(url: str) -> str:
    try:
        return get(f"{url}/health")
    except OSError:
        return ""


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen, str]]]:
    """keep(restarts, code) -> the keeper's process and the server's address."""
    started = []

    def start(restarts: int = 2, code: str = SERVER, parent: int = 0) -> tuple[subprocess.Popen, str]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        script = tmp_path / "server.py"
        script.write_text(code)
        process = subprocess.Popen([
            sys.executable, "-m", "pipeline.engines.vllm.keeper", "--url", url, "--parent", str(parent or os.getpid()),
            "--restarts", str(restarts), "--grace", "2", "--", sys.executable, str(script), url.rpartition(":")[2]])
        started.append(process)
        return process, url

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """The keeper, the supervisor in between, the server, and its child in a session of its own."""
    root = psutil.Process(process.pid)
    until(lambda: len(root.children(recursive=True)) == 3)
    return [root, *root.children(recursive=True)]


def all_gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=10)
    return not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_a_crashed_server_comes_back_at_the_same_address_without_what_it_left(keep):
    process, url = keep()
    until(lambda: serves(url))
    time.sleep(1.5)  # the keeper has seen it serve
    _, *before = family(process)
    first = get(f"{url}/die")
    until(lambda: serves(url) not in ("", first))
    assert process.poll() is None
    assert all_gone(before)


def test_it_gives_up_after_so_many_crashes(keep):
    process, url = keep(restarts=1)
    for _ in range(2):
        until(lambda: serves(url))
        time.sleep(1.5)
        get(f"{url}/die")
    assert process.wait(20) == 137


def test_a_server_that_never_served_is_not_tried_again(keep):
    process, _ = keep(code="import sys; print('broken'); sys.exit(7)")
    assert process.wait(20) == 7


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_told_to_stop_it_ends_everything(keep, number, code):
    process, url = keep()
    until(lambda: serves(url))
    everything = family(process)
    process.send_signal(number)
    assert process.wait(20) == code
    assert all_gone(everything[1:])


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_kill_9_of_keeper_supervisor_or_server_leaves_no_orphan(keep, killed):
    """Whichever of the three is killed: the server's child, which ends with nobody by itself, goes too."""
    process, url = keep(restarts=0)
    until(lambda: serves(url))
    time.sleep(1.5)
    everything = family(process)
    everything[killed].kill()
    process.wait(20)
    assert all_gone(everything)


def test_it_does_not_outlive_its_parent_killed_by_minus_9(keep, tmp_path):
    """The parent is a process between us and the keeper."""
    code = (
        "import os, subprocess, sys, time; p = subprocess.Popen([sys.executable, '-m', 'pipeline.engines.vllm.keeper',"
        " '--url', sys.argv[1], '--parent', str(os.getpid()), '--', sys.executable, *sys.argv[2:]]);"
        "print(p.pid, flush=True); time.sleep(600)"
    )
    (tmp_path / "server.py").write_text(SERVER)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    parent = subprocess.Popen(
        [sys.executable, "-c", code, url, str(tmp_path / "server.py"), port], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    keeper = psutil.Process(int(parent.stdout.readline()))
    until(lambda: serves(url))
    until(lambda: len(keeper.children(recursive=True)) == 3)
    everything = [keeper, *keeper.children(recursive=True)]
    parent.kill()
    parent.wait()
    assert all_gone(everything)
