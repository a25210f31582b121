"""A process that has imported what stages import, and forks one for each step: `python -m pipeline.warm STAGE ...`.

A line of JSON on its standard input starts a step: {"spec", "log", "grace", "timeout", "environment"}. It answers on
its standard output, in lines of JSON too: {"ready": true} once, {"pid": n} for each step, {"pid": n, "code": c} at its
end, {"refused": why} where the system does not let it fork.
A fork is the step's supervisor, which forks the step's worker: the same processes as without, that die in the same
ways. Here only imports happen: no tensor, no thread of ours, nothing of CUDA. It ends with its standard input, and a
supervisor whose parent has gone ends its step.
"""

import gc
import importlib
import json
import os
import selectors
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import setproctitle

from pipeline import supervisor, worker

# What stages import when they run, beside their own module: five of seven seconds of a small step.
LATER = ("torch._dynamo", "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto",
          "transformers.models.auto.tokenization_auto", "safetensors.torch", "pyarrow.parquet", "accelerate", "peft",
          "pandas",  # pyarrow imports it for the first rows it is given
          "pipeline.engines.transformers.sampling", "pipeline.training.run")


class _Worker(BaseException):
    """Raised in the fork that is to work, through everything its supervisor was doing."""


def serve() -> dict[str, Any] | None:
    """The loop of the parent: None at the end of its input. In a fork: the step it is the supervisor of."""
    waked, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    chosen, asked = selectors.DefaultSelector(), b""
    for end in (0, waked):
        chosen.register(end, selectors.EVENT_READ)
    while True:
        for key, _ in chosen.select():
            read = os.read(key.fd, 2**16)
            if key.fd == waked:
                _tell_ended()
                continue
            if not read:
                return None
            *lines, asked = (asked + read).split(b"\n")
            for line in lines:
                if (step := _forked(json.loads(line))) is not None:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    chosen.close()
                    for end in (waked, wakes):
                        os.close(end)
                    return step


def _forked(step: dict[str, Any]) -> dict[str, Any] | None:
    """The step in the fork, None in the parent."""
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        _tell(refused=f"the system does not fork: {error.strerror}")
        return None
    if pid:
        _tell(pid=pid)
        return None
    return {**step, "parent": parent}


def _tell_ended() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        code = os.waitstatus_to_exitcode(status)
        _tell(pid=pid, code=code if code >= 0 else 128 - code)


def _tell(**what: Any) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def _supervise(step: dict[str, Any]) -> int:
    """Exit code of the step, or in its worker's fork the worker's own."""
    os.environ.clear()
    os.environ.update(step["environment"])
    os.dup2(nothing := os.open(os.devnull, os.O_RDONLY), 0)
    os.close(nothing)
    cold = [sys.executable, "-P", "-m", "pipeline.worker", step["spec"]]
    log = Path(step["log"])
    setproctitle.setproctitle(" ".join(supervisor.command_line(cold, log=log, grace=step["grace"])))
    try:
        supervisor.redirect(log)
        return supervisor.take_care(_start, grace=step["grace"], timeout=step["timeout"], parent=step["parent"])
    except _Worker:
        setproctitle.setproctitle(" ".join(cold))
        sys.argv = [worker.__file__, step["spec"]]
        return worker.main()
    except OSError as error:
        return supervisor.no_log(log, error)


def _start() -> int:
    if pid := os.fork():
        return pid
    os.setsid()
    supervisor.in_child()
    raise _Worker


def main(stages: list[str]) -> int:
    # The first call finds where the title stands, which it cannot once the environment has changed.
    setproctitle.setproctitle(" ".join([sys.executable, "-P", "-m", "pipeline.warm", *stages]))
    # Ctrl-C is the driver's to answer; a fork that is told of it before it looks finds it waiting.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    for name in ("torch", "transformers", *(f"pipeline.stages.{stage}" for stage in stages), *LATER):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that no fork copies what its collector only looks through
    _tell(ready=True)
    step = serve()
    if step is None:
        return 0
    try:
        code = _supervise(step)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # what a stage leaves is on the disk; taking a thousand modules apart takes half a second


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
