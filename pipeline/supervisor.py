"""Run one command so that nothing of it outlives its end, its timeout, its parent or a stop request.

    python -m pipeline.supervisor [--grace 10] [--timeout 0] [--log FILE] -- COMMAND ...

Killing a process group is not enough: torchrun starts its workers in new sessions and vLLM's engine core survives a
SIGKILL of its parent. So this process is the child subreaper of everything the command starts, and when the command
is over, for whatever reason, every descendant left is killed. It ends by itself when its own parent has gone, which
it learns by looking (a parent-death signal would fire when the spawning *thread* ends).

Exit code: the command's own; 128 + n when signal n ended it; 124 timeout; 143 or 130 when told to stop.
"""

import argparse
import ctypes
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from pipeline import files, waiting

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_WATCHED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_POLL_SECONDS = 0.5


def command_line(command: list[str], *, log: Path | None, grace: float, timeout: float = 0,
                 stdin: bool = False, spare: Path | None = None) -> list[str]:
    """The argv that runs `command` under a supervisor of its own. `log` gets its stdout and stderr, appended; `stdin`:
    it reads the supervisor's standard input, else none. `spare`: where an engine that waits (pipeline/waiting.py) may
    outlive a command that ends with 0.
    """
    options = ["--grace", str(grace), "--timeout", str(timeout), "--parent", str(os.getpid())]
    options += (["--log", str(log)] if log else []) + (["--stdin"] if stdin else [])
    options += ["--spare", str(spare)] if spare else []
    return [sys.executable, "-P", "-m", "pipeline.supervisor", *options, "--", *command]


def imports() -> dict[str, str]:
    """Environment of a child process that must find this code, also where it is not installed, and never takes a
    `pipeline.py` or `numbers.py` of the folder it is started in for ours or Python's own.
    """
    paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))  # an empty one would be that folder
    return {"PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[1]), *paths]), "PYTHONSAFEPATH": "1"}


def supervise(command: list[str], *, grace: float, timeout: float = 0, parent: int = 0, stdin: bool = False,
              told: Callable[[], int | None] = lambda: None, spare: Path | None = None) -> int:
    """Run `command` in this process's care and return its exit code. Meant to be called by a process of its own.

    parent: the pid whose end ends the command; 0: the parent's, -1: none, `told` says when.
    told: asked twice a second; the exit code with which to end the command now, None to go on.
    """
    return take_care(functools.partial(_started, command, stdin), grace=grace, timeout=timeout, parent=parent,
                     told=told, spare=spare)


def take_care(start: Callable[[], int], *, grace: float, timeout: float = 0, parent: int = 0,
              told: Callable[[], int | None] = lambda: None, spare: Path | None = None) -> int:
    """As `supervise`, of what `start` begins: a child in a session of its own that calls `in_child`. It gives its pid.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    child = start()
    parent = parent or os.getppid()
    deadline = time.monotonic() + timeout if timeout else None
    code = _wait(child, parent, deadline, grace, told)
    _kill_descendants(spare if code == 0 else None)
    return code


def _started(command: list[str], stdin: bool) -> int:
    """The pid of the command, whose end the supervisor looks for itself."""
    # Nothing a stage asks is answered: code of a model folder, say, would run if standard input said "y".
    child = subprocess.Popen(command, stdin=None if stdin else subprocess.DEVNULL, start_new_session=True,
                             preexec_fn=in_child)
    child.returncode = 0  # so that it is not looked for twice
    return child.pid


def _wait(child: int, parent: int, deadline: float | None, grace: float, told: Callable[[], int | None]) -> int:
    verdict: int | None = None  # set once we decided to end it
    kill_at: float | None = None
    while True:
        received = signal.sigtimedwait(_WATCHED, _POLL_SECONDS)
        code = _reap(child)
        if code is not None:
            return code if verdict is None else verdict
        now = time.monotonic()
        if verdict is None:
            verdict = _reason_to_stop(received, parent, deadline, now)
            verdict = told() if verdict is None else verdict
            if verdict is not None:
                os.kill(child, signal.SIGTERM)
                kill_at = now + grace
        elif kill_at is not None and now >= kill_at:
            os.kill(child, signal.SIGKILL)
            kill_at = None


def _reason_to_stop(
    received: signal.struct_siginfo | None, parent: int, deadline: float | None, now: float
) -> int | None:
    told = None if received is None else received.si_signo
    if told == signal.SIGINT:
        return 130
    if told in (signal.SIGTERM, signal.SIGHUP) or parent not in (-1, os.getppid()):
        return 143
    return 124 if deadline is not None and now >= deadline else None


def _reap(child: int) -> int | None:
    """Collect every dead child, adopted orphans too. Returns the command's exit code once it has ended."""
    found: int | None = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            found = code if code >= 0 else 128 - code


def _kill_descendants(spare: Path | None = None) -> None:
    """SIGKILL until none is left but what is spared: a process may fork between the look and the kill."""
    me = psutil.Process()
    for _ in range(100):
        waits = (waiting.read(spare) if spare else None) or {"pids": ()}
        roots = [keeper.process() for keeper in waiting.keepers(spare or Path(), waits)]
        spared = {p for root in roots if root for p in (root, *root.children(recursive=True))}
        left = [p for p in me.children(recursive=True) if p not in spared and p.status() != psutil.STATUS_ZOMBIE]
        if not left:
            return
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        psutil.wait_procs(left, timeout=0.2)


def in_child() -> None:
    """Ready a new child of a supervisor: it is told when that has gone, and hears the signals it waits for."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # not SIGKILL: what it started is its to end, and SIGTERM lets it


def _prctl(option: int, value: int) -> None:
    """Linux only; elsewhere the descendants of a killed child are still found through psutil's process tree."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.supervisor", description=__doc__.splitlines()[0])
    parser.add_argument("--grace", type=float, default=10, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument("--timeout", type=float, default=0, help="seconds the command may run, 0: no limit")
    parser.add_argument("--log", type=Path, help="append the command's stdout and stderr to this file")
    parser.add_argument("--stdin", action="store_true", help="let the command read this process's standard input")
    parser.add_argument("--parent", type=int, default=0, help="pid whose end ends the command (default: the parent)")
    parser.add_argument("--spare", type=Path, help="folder of an engine that may outlive a command that ends with 0")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("no command given")
    try:
        if options.log:
            redirect(options.log)
    except OSError as error:
        return no_log(options.log, error)
    return supervise(command, grace=options.grace, timeout=options.timeout, parent=options.parent, stdin=options.stdin,
                     spare=options.spare)


def no_log(log: Path, error: OSError) -> int:
    """Exit code of a supervisor whose log cannot be written."""
    print(f"{log}: {error.strerror}", file=sys.stderr)
    return files.EXIT.get(files.disk_fault(error), 1)


def redirect(log: Path) -> None:
    """Append to `log` what this process and its children print."""
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


if __name__ == "__main__":
    sys.exit(_main())
