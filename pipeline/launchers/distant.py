"""The driver's side of a step that runs behind a connection: a process here, the node's side at its other end."""

import contextlib
import json
import os
import subprocess
import time
from dataclasses import replace

from pipeline import supervisor
from pipeline.launchers import lease
from pipeline.launchers.contract import Lost, Order

_BEATS = 6  # in the time after which the node's side gives its driver up
_LATER = 10.0  # seconds that the process here has to end once the step has ended, or must have
_SEEN = 3.0  # seconds that the node's last word may take to be seen here


class Distant:
    """The process here whose other end runs the step. It is told the environment, and the end, on standard input."""

    def __init__(self, order: Order, held: lease.Lease, words: list[str], shown: str, trial: str) -> None:
        self.order, self.held, self.shown, self.trial = order, held, shown, trial
        command = supervisor.command_line(words, log=order.log, grace=_LATER, stdin=True)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, **order.environment})
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already, and says why in its log
            self._process.stdin.write(json.dumps(order.sent).encode() + b"\n")
            self._process.stdin.flush()
        self._beat_at = time.monotonic()

    def poll(self, seconds: float) -> int | None:
        self._beat()
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            if (ended := lease.ended(self.order.work, self.held.token)) is None:
                return None
            self._end(_LATER)
            return ended
        self._hang_up()
        deadline = time.monotonic() + _SEEN
        while (ended := lease.ended(self.order.work, self.held.token)) is None and time.monotonic() < deadline:
            if not (host := lease.begun(self.order.work, self.held.token)):
                raise Lost(f"{self.shown} ended with exit code {code} before the step began; try by hand: {self.trial}")
            time.sleep(_SEEN / 30)
        if ended is None:
            raise Lost(f"{self.shown} ended with exit code {code} while the step ran on {host}: the connection or "
                       "the node is lost; once it answers, go on")
        return ended

    def stop(self) -> None:
        lease.write(self.order.work, replace(self.held, stop=True))
        self._end(self.order.grace + _LATER)

    def waiting(self) -> str:
        return "" if lease.begun(self.order.work, self.held.token) else f"waiting for {self.shown}"

    def _beat(self) -> None:
        if time.monotonic() - self._beat_at > self.held.lost / _BEATS:
            self.held, self._beat_at = replace(self.held, beat=self.held.beat + 1), time.monotonic()
            lease.write(self.order.work, self.held)

    def _end(self, seconds: float) -> None:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait()
        self._hang_up()

    def _hang_up(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
