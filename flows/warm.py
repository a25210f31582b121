"""The run's side of `pipeline.warm`: starts it, asks it for a step, waits for the step's end."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

_POLL_SECONDS = 0.05


class Gone(Exception):
    """The warm process has ended, or does not fork; the text says why. No process of the step is left."""


class Warm:
    """A run's warm process, not started yet. One object per driver."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.why_cold = ""  # why it serves no more
        self._process: subprocess.Popen[bytes] | None = None
        self._ready, self._read = False, b""
        self._one = threading.RLock()  # steps that run beside each other are watched by threads of their own
        self._codes: dict[int, int] = {}  # of the steps that have ended, until they are asked for

    def start(self, stages: Iterable[str], environment: dict[str, str]) -> None:
        """Begin to import what these stages need; does nothing where that was begun before."""
        if self._process is not None:
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([sys.executable, "-P", "-m", "pipeline.warm", *sorted(set(stages))],
                                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment)

    def ready(self) -> bool:
        """Whether a step can be a fork by now. Does not wait."""
        if self._process is None or self.why_cold:
            return False
        try:
            while not self._ready and self._hear(0) is not None:
                pass
        except Gone:
            return False
        return self._ready

    def fork(self, spec: Path, log: Path, grace: float, timeout: float, environment: dict[str, str]) -> "Forked":
        """Start a step. Raises Gone where none was started."""
        assert self._process is not None and self._process.stdin is not None
        asked = {"spec": str(spec), "log": str(log), "grace": grace, "timeout": timeout, "environment": environment}
        with self._one:
            try:
                self._process.stdin.write(json.dumps(asked).encode() + b"\n")
                self._process.stdin.flush()
            except OSError:
                raise self._gone() from None
            while not (said := self._hear(1) or {}).keys() & {"pid", "refused"} or "code" in said:
                pass
        if "refused" in said:
            self.why_cold = said["refused"]
            raise Gone(self.why_cold)
        return Forked(self, said["pid"])

    def code(self, pid: int, seconds: float) -> int | None:
        """Exit code of the step that it forked, None where it does not end for so long. Raises Gone at its own end."""
        end = time.monotonic() + seconds
        while pid not in self._codes and (left := end - time.monotonic()) > 0:
            with self._one:
                if pid not in self._codes:
                    self._hear(min(left, _POLL_SECONDS))
        return self._codes.pop(pid, None)

    def _hear(self, seconds: float) -> dict[str, Any] | None:
        """The next thing it says, None where it says nothing for so long. Raises Gone at its end."""
        with self._one:
            said = self._line(seconds)
            if said is not None and "code" in said:
                self._codes[said["pid"]] = said["code"]
            self._ready = self._ready or bool(said and said.get("ready"))
            return said

    def _line(self, seconds: float) -> dict[str, Any] | None:
        assert self._process is not None and self._process.stdout is not None
        if b"\n" not in self._read:
            told = self._process.stdout.fileno()
            if not select.select([told], [], [], seconds)[0]:
                return None
            if not (read := os.read(told, 2**16)):
                raise self._gone()
            self._read += read
        line, newline, rest = self._read.partition(b"\n")
        if not newline:
            return None
        self._read = rest
        return dict(json.loads(line))

    def _gone(self) -> Gone:
        assert self._process is not None
        self.why_cold = f"the warm process ended with exit code {self._process.wait()}, see {self.log}"
        return Gone(self.why_cold)

    def close(self) -> None:
        """End it. What it has forked has ended before."""
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.terminate()  # it may still be importing
            self._process.wait()
            with contextlib.suppress(OSError):  # what it was asked when it had died still waits to be written
                self._process.stdin.close()
            self._process.stdout.close()
            self._process = None


class Forked:
    """The supervisor of a step that is a fork: what the driver asks of a Popen."""

    def __init__(self, warm: Warm, pid: int) -> None:
        self._warm, self._pid = warm, pid
        self._code: int | None = None
        try:
            self._process: psutil.Process | None = psutil.Process(pid)
        except psutil.NoSuchProcess:  # it was quick: its end is told already
            self._process = None

    def poll(self, seconds: float) -> int | None:
        """The step's exit code, None while it runs. Raises Gone where the warm process ended, once the step has."""
        if self._code is None:
            try:
                self._code = self._warm.code(self._pid, seconds)
            except Gone:
                if self._process is not None:
                    psutil.wait_procs([self._process])  # it sees that its parent has gone
                raise
        return self._code

    def stop(self) -> None:
        """Have the supervisor end everything the stage has started, and wait."""
        if self._code is None and self._process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(Gone):
                while self.poll(_POLL_SECONDS) is None:
                    pass

    def waiting(self) -> str:
        return ""
