"""Nothing a command starts outlives its end, its timeout, its parent or a stop request."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from pipeline import supervisor


@pytest.fixture
def mark():
    """A text that finds the processes of one test among all."""
    text = f"mark{uuid.uuid4().hex}"
    yield text
    for process in _marked(text):
        process.kill()


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if mark in " ".join(process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def _python(code: str, mark: str) -> list[str]:
    return [sys.executable, "-c", code, mark]


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", sys.argv[1]], start_new_session=True)
print("up", flush=True)
time.sleep(60)
"""


def _start(command: list[str], **options) -> subprocess.Popen[bytes]:
    options = {"log": None, "grace": 1, **options}
    return subprocess.Popen(supervisor.command_line(command, **options), stdout=subprocess.PIPE)


def test_the_exit_code_is_the_commands_own():
    assert _start([sys.executable, "-c", "raise SystemExit(7)"]).wait() == 7


def test_a_command_reads_standard_input_only_where_it_may():
    read = [sys.executable, "-c", "import sys; print(sys.stdin.readline().strip() or 'nothing')"]
    for may, said in ((True, b"a line\n"), (False, b"nothing\n")):
        care = supervisor.command_line(read, log=None, grace=1, stdin=may)
        assert subprocess.run(care, input=b"a line\n", stdout=subprocess.PIPE).stdout == said


def test_it_ends_when_it_is_told_with_the_code_it_is_told():
    code = ("from pipeline import supervisor; import sys; told = iter([None, 143]).__next__; "
            "sys.exit(supervisor.supervise(['sleep', '60'], grace=1, told=told))")
    assert subprocess.run([sys.executable, "-c", code], timeout=20).returncode == 143


def test_a_signal_becomes_128_plus_its_number():
    assert _start([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]).wait() == 137


def test_left_overs_of_a_command_that_ended_are_killed(mark):
    leave = (
        "import subprocess, sys\n"
        "sleeper = [sys.executable, '-c', 'import time; time.sleep(60)', sys.argv[1]]\n"
        "subprocess.Popen(sleeper, start_new_session=True)"
    )
    assert _start(_python(leave, mark)).wait() == 0
    assert _marked(mark) == []


def test_sigterm_ends_a_stubborn_tree_within_the_grace(mark):
    process = _start(_python(STUBBORN, mark))
    process.stdout.readline()
    started = time.monotonic()
    process.terminate()
    assert process.wait() == 143
    assert time.monotonic() - started < 4
    assert _marked(mark) == []


def test_interrupt_is_130(mark):
    process = _start(_python("import time; print('up', flush=True); time.sleep(60)", mark))
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130


def test_timeout_is_124(mark):
    started = time.monotonic()
    assert _start(_python(STUBBORN, mark), timeout=1).wait() == 124
    assert time.monotonic() - started < 5
    assert _marked(mark) == []


def test_everything_ends_when_the_parent_is_killed(mark):
    parent = f"""
import subprocess, sys
from pipeline import supervisor
command = [sys.executable, "-c", {STUBBORN!r}, sys.argv[1]]
subprocess.Popen(supervisor.command_line(command, log=None, grace=0.5)).wait()
"""
    process = subprocess.Popen(_python(parent, mark), stdout=subprocess.PIPE)
    process.stdout.readline()
    assert len(_marked(mark)) >= 3
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while _marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _marked(mark) == []


def test_output_goes_to_the_log(tmp_path):
    log = tmp_path / "logs" / "x.log"
    code = "import sys; print('out'); print('err', file=sys.stderr)"
    assert _start([sys.executable, "-u", "-c", code], log=log).wait() == 0
    assert sorted(log.read_text().split()) == ["err", "out"]


def test_what_a_child_imports_from(monkeypatch):
    """An empty place in PYTHONPATH is the folder it is started in, which counts for nothing."""
    monkeypatch.setenv("PYTHONPATH", ":/a::/b:")
    ours = str(Path(supervisor.__file__).parents[1])
    assert supervisor.imports() == {"PYTHONPATH": f"{ours}:/a:/b", "PYTHONSAFEPATH": "1"}
