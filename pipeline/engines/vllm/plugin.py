"""What vLLM's processes of ours load, by vLLM's own entry point `vllm.general_plugins`.

vLLM 0.32 lets a process that waits for another one spin on its core, for a second behind the last message. On a CPU
that core is one of those the model computes on: naps instead made sampling on two cores 1.1 times as fast.
"""

import os
import time
from typing import Any

NAME = "alignloop"  # of the entry point
PATIENT = "ALIGNLOOP_ENGINE_PATIENT"  # set: this vLLM process is ours and computes on CPU
_NAP = 1  # ms. Never longer: a message may come without its notification, vLLM then finds it by looking again


def register() -> None:
    """Called by vLLM in each of its processes; a vLLM that is not ours stays as it is."""
    if not os.environ.get(PATIENT):
        return
    from vllm.distributed.device_communicators import shm_broadcast

    wait, no_wait = shm_broadcast.SpinCondition.wait, shm_broadcast.zmq.NOBLOCK

    def wait_patiently(self: Any, timeout_ms: int | None = None) -> None:
        if time.monotonic() > self.last_read + self.busy_loop_s:
            wait(self, timeout_ms)
        elif self.local_notify_socket in dict(self.poller.poll(_NAP)):
            self.local_notify_socket.recv(flags=no_wait, copy=False)

    shm_broadcast.SpinCondition.wait = wait_patiently  # type: ignore[method-assign]
