"""Keep one server serving: run its command, watch its health, run it again when it has crashed.

    python -m pipeline.engines.vllm.keeper --url URL --parent PID [--restarts 5] [--grace 5] -- COMMAND ...

It comes back at the same address with the same key, so whoever asks there only has to wait and ask again. A command
that ends before it ever served is not run again: it would end again. Nothing of it outlives this process, and this
process does not outlive its parent (`pipeline.supervisor`); with --kept FOLDER instead of --parent, it outlives the
run that uses the server by the seconds for which that waits for another one (`pipeline.waiting`). The command has a
supervisor of its own in between, which ends it where this process is killed and cannot.
"""

import argparse
import signal
import sys
import threading
from pathlib import Path

import psutil

from pipeline import supervisor, waiting, web

_POLL_SECONDS = 1.0  # while it starts
_WATCH_SECONDS = 10.0  # once it serves
_HUNG_AFTER = 12  # unanswered looks in a row: it hangs
_STOPPED = (130, 143)
_MORE_GRACE = 2.0  # seconds that the supervisor in between has for its own part
_BLOCKED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def keep(command: list[str], url: str, *, restarts: int, grace: float, parent: int, kept: Path | None) -> int:
    """Exit code of the last time it ran; 143 or 130 when told to stop, when `parent` has gone (-1: nobody's end ends
    it), or when nobody uses what is kept at `kept`, and nobody will."""
    told = waiting.verdict(kept) if kept is not None else lambda: None
    signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)  # threads inherit it: signals are the supervisor's to receive
    for attempt in range(restarts + 1):
        served, over = threading.Event(), threading.Event()
        watcher = threading.Thread(target=_watch, args=(url, served, over), daemon=True)
        watcher.start()
        inner = supervisor.command_line(command, log=None, grace=grace)
        code = supervisor.supervise(inner, grace=grace + _MORE_GRACE, parent=parent, told=told)
        over.set()
        if code in _STOPPED or not served.is_set():
            return code
        print(f"keeper: the server ended with code {code} (time {attempt + 1} of {restarts + 1})", flush=True)
    return code or 1


def _watch(url: str, served: threading.Event, over: threading.Event) -> None:
    """Set `served` with the first healthy answer; end a server that has stopped answering."""
    missed = 0
    while not over.wait(_WATCH_SECONDS if served.is_set() else _POLL_SECONDS):
        healthy = _healthy(url)
        missed = 0 if healthy else missed + served.is_set()
        if healthy:
            served.set()
        if missed >= _HUNG_AFTER:
            print(f"keeper: no answer for {missed * _WATCH_SECONDS:.0f} s: ending the server", flush=True)
            for process in psutil.Process().children(recursive=True):
                process.kill()
            return


def _healthy(url: str) -> bool:
    try:
        return web.fetch(f"{url}/health", _WATCH_SECONDS)[0] == 200
    except OSError:
        return False


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.engines.vllm.keeper")
    parser.add_argument("--url", required=True, help="where it serves; URL/health answers 200")
    owner = parser.add_mutually_exclusive_group(required=True)
    owner.add_argument("--parent", type=int, default=-1, help="pid whose end ends the server")
    owner.add_argument("--kept", type=Path, help="folder of the lock whose holder it serves")
    parser.add_argument("--restarts", type=int, default=5, help="how often it is run again")
    parser.add_argument("--grace", type=float, default=5.0, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("no command given")
    return keep(command, options.url, restarts=options.restarts, grace=options.grace, parent=options.parent,
                kept=options.kept)


if __name__ == "__main__":
    sys.exit(_main())
