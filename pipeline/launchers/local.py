"""Steps run on this machine, under a supervisor that leaves nothing of them behind."""

import subprocess
import sys
from dataclasses import dataclass

from pipeline import supervisor
from pipeline.launchers import lease
from pipeline.launchers.contract import Launcher, Order


@dataclass(frozen=True)
class Settings:
    """None."""


@dataclass(frozen=True)
class Cold:
    """A supervisor that was started as a command."""

    process: subprocess.Popen[bytes]

    def poll(self, seconds: float) -> int | None:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()

    def waiting(self) -> str:
        return ""


def start(order: Order, settings: Settings) -> Cold:
    lease.clear(order.work, order.grace)  # a run of another launcher may have been killed
    command = supervisor.command_line([sys.executable, "-P", "-m", order.module, str(order.spec)], log=order.log,
                                      grace=order.grace, timeout=order.timeout)
    return Cold(subprocess.Popen(command, env=dict(order.environment)))


LAUNCHER = Launcher(Settings, start, elsewhere=False)
