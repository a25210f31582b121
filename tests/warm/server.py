"""`python tests/warm/server.py SOCKET`: imports what a stage's process imports, then forks one for whoever asks.

Only imports happen here: no tensor is computed, no thread pool is started before a fork. It ends with its standard
input, and every fork with it. Prints "ready" when it can be asked.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import psutil
import setproctitle

ROOT = Path(__file__).parents[2]
# What stages import only when they run.
LAZY = ("torch._dynamo", "torch.distributed.run", "torch.distributed.fsdp", "torch.distributed.tensor",
        "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto", "accelerate", "peft", "safetensors.torch", "pyarrow.parquet",
        "pandas")


@dataclass(frozen=True)
class Job:
    """What the process that asked was started with."""

    argv: list[str]
    cwd: str
    environment: dict[str, str]
    umask: int
    files: list[int]  # its standard input, output and error


def preload() -> None:
    import pipeline

    for name in LAZY:
        importlib.import_module(name)
    for found in pkgutil.walk_packages(pipeline.__path__, "pipeline."):  # none of them imports vLLM, Ray or W&B
        importlib.import_module(found.name)


def serve(listener: socket.socket) -> Job | None:
    """The loop of the parent. Returns a Job in each fork, None when the parent has to end."""
    signal.signal(signal.SIGCHLD, lambda *_: None)
    waked, wakes = socket.socketpair()
    for end in (waked, wakes):
        end.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno())
    chosen, running = selectors.DefaultSelector(), {}
    for source in (listener, waked, sys.stdin):
        chosen.register(source, selectors.EVENT_READ)
    while True:
        for key, _ in chosen.select():
            if key.fileobj is sys.stdin:
                for pid in running:
                    kill(pid)
                return None
            if key.fileobj is listener:
                link, _ = listener.accept()
                job = receive(link)
                if job is None:
                    link.close()
                    continue
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for source in (listener, link, waked, wakes, chosen, *running.values()):
                        source.close()
                    return job
                for file in job.files:
                    os.close(file)
                running[pid] = link
                chosen.register(link, selectors.EVENT_READ, pid)
                tell(link, pid)
            elif key.fileobj is waked:
                waked.recv(4096)
                for pid, code in ended():
                    link = running.pop(pid)
                    if link in chosen.get_map():
                        chosen.unregister(link)
                    tell(link, code)
                    link.close()
            elif key.data in running:  # who asked has ended, so nobody waits for the fork
                chosen.unregister(key.fileobj)
                kill(key.data)


def receive(link: socket.socket) -> Job | None:
    """What was asked; None if who asked was killed meanwhile."""
    size, files, _, _ = socket.recv_fds(link, 4, 3)
    asked = link.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
    try:
        return Job(**json.loads(asked), files=files)
    except ValueError:
        for file in files:
            os.close(file)
        return None


def tell(link: socket.socket, number: int) -> None:
    try:
        link.sendall(number.to_bytes(4, "big", signed=True))
    except OSError:
        pass  # who asked has ended; the loop sees it


def ended() -> list[tuple[int, int]]:
    """(pid, exit code or minus the signal's number) of every fork that has ended."""
    found = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        found.append((pid, os.waitstatus_to_exitcode(status)))


def kill(pid: int) -> None:
    """The fork and everything it has started."""
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            process.kill()
    except psutil.NoSuchProcess:
        pass


def become(job: Job) -> None:
    """Take on what the process that asked was started with."""
    os.setsid()
    for number, file in enumerate(job.files):
        os.dup2(file, number)
    for file in job.files:
        os.close(file)
    os.chdir(job.cwd)
    os.umask(job.umask)
    os.environ.clear()
    os.environ.update(job.environment)
    own = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.path[:] = [job.cwd, *own, *(place for place in sys.path if place not in own)]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=True)


def main() -> int:
    sys.path[0] = str(ROOT)
    preload()
    setproctitle.getproctitle()  # finds its place, for forks of forks whose environment is another
    gc.freeze()  # so that no fork copies what it only looks through
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen(64)
        print("ready", flush=True)
        job = serve(listener)
    if job is None:
        return 0
    become(job)
    from pipeline import warm, worker

    module, *sys.argv[1:] = job.argv
    try:
        code = worker.main() if module == "pipeline.worker" else warm.main(sys.argv[1:])
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking a thousand modules apart takes half a second


if __name__ == "__main__":
    sys.exit(main())
