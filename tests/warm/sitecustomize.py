"""A stage's process from a warm parent: on the path of processes that tests start (the fixture `warm` puts it there).

Python imports this file at its start. Where the command is `python -m pipeline.worker STEP` or `python -m
pipeline.warm STAGE ...`, the process asks the server of tests/warm/server.py, which has torch and transformers
imported, to fork: the fork gets this process's arguments, folder, environment, standard files and a session of its own.
This process stays in its place: it passes on the signals it gets and ends as the fork ends, by the same code or the
same signal; killed, the fork is killed with it. Stages of the kinds that ALIGNLOOP_COLD names, commas between them,
start as they do for a user, and so does a run's own warm process where it names any.
"""

import os
import sys


def _forked(address: str, arguments: list[str]) -> None:
    """Ask for the fork, wait for its end, end alike. Does not return."""
    import json
    import signal
    import socket

    os.umask(mask := os.umask(0))
    own = {"argv": arguments, "cwd": os.getcwd(), "environment": dict(os.environ), "umask": mask}
    asked = json.dumps(own).encode()
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(address)
        socket.send_fds(link, [len(asked).to_bytes(4, "big")], [0, 1, 2])
        link.sendall(asked)
        pid = int.from_bytes(link.recv(4, socket.MSG_WAITALL), "big")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda received, _frame: os.kill(pid, received))
        answer = link.recv(4, socket.MSG_WAITALL)
    if len(answer) < 4:
        sys.stderr.write("the warm server has ended\n")
        os._exit(1)
    code = int.from_bytes(answer, "big", signed=True)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


if "ALIGNLOOP_WARM" in os.environ and "-m" in sys.orig_argv:
    _at = sys.orig_argv.index("-m") + 1  # the first one: a supervisor's command line has the worker's in it
    _module, _cold = sys.orig_argv[_at], os.environ.get("ALIGNLOOP_COLD", "")
    _kind = sys.orig_argv[-1].split("/")[-3:][0]  # KIND/.work-KEY/step.json
    if (_module == "pipeline.worker" and _kind not in _cold.split(",")) or (_module == "pipeline.warm" and not _cold):
        _forked(os.environ["ALIGNLOOP_WARM"], sys.orig_argv[_at:])
