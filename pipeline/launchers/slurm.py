"""Steps run as jobs of Slurm: sbatch with what a kind of stage needs, srun on each of the job's nodes.

The job's id is in the step's work folder. So a driver that was killed loses nothing: the job goes on, and the same
command finds it and waits for it. A run that is stopped cancels its job.
"""

import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline import worker
from pipeline.config import setting
from pipeline.launchers import lease, node
from pipeline.launchers.contract import KINDS, Launcher, Lost, Order, Resources

_ASIDE = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_LIVE = (*_ASIDE, "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT")
_AGAIN = ("TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "PREEMPTED")  # it can go on from where it is
_UNKNOWN = "UNKNOWN"  # the controller does not answer
_GONE = "GONE"  # it answers that it has no such job
_CANCELLED_SECONDS = 90.0  # Slurm's KillWait is 30
_SEEN = 10.0  # seconds that a node's last word may take to be seen here
_SCRIPT = """#!/bin/sh
export {rendezvous}="$(hostname):$((20000 + SLURM_JOB_ID % 10000))"
[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
exec srun --ntasks-per-node=1 --kill-on-bad-exit=1 {words}
"""


@dataclass(frozen=True)
class Asked(Resources):
    """What the job of a kind of stage asks for."""

    minutes: float | None = setting(None, above=0.0)  # until Slurm ends the job; null: the partition's default
    partition: str | None = None  # null: the cluster's default
    flags: list[str] = field(default_factory=list)  # further words for sbatch, such as ["--constraint=h100"]


@dataclass(frozen=True)
class Settings:
    """What jobs ask for by kind of stage, and how they are watched."""

    train: Asked = field(default_factory=Asked)  # what trains, or scores with a model
    sample: Asked = field(default_factory=Asked)  # what samples
    model: Asked = field(default_factory=Asked)  # what holds a model on one device
    data: Asked = field(default_factory=Asked)  # what holds none
    flags: list[str] = field(default_factory=list)  # further words for every sbatch, such as ["--account=lab"]
    requeue: bool = True  # Slurm may start a job anew where its node fails or others come first
    again: int = setting(0, low=0)  # times a step is submitted again whose job ran out of time or was put aside
    poll_seconds: float = setting(5.0, above=0.0)  # between two looks at the queue
    python: str | None = None  # the interpreter there; null: the path of this one

    def check(self) -> list[tuple[str, str]]:
        lists = {"flags": self.flags, **{f"{kind}.flags": vars(self)[kind].flags for kind in KINDS}}
        return [(key, f"{word!r}, expected words for sbatch, such as \"--account=lab\"")
                for key, words in lists.items() for word in words if not word.startswith("-")]


@dataclass(frozen=True)
class Seen:
    """A job as squeue shows it."""

    state: str
    reason: str = ""
    nodes: str = ""


def arguments(order: Order, settings: Settings, name: str) -> list[str]:
    """The words of sbatch."""
    asked: Asked = vars(settings)[order.kind]
    gpus = order.devices if asked.gpus is None else asked.gpus
    wanted = {
        "job-name": name, "output": str(order.log).replace("%", "%%"), "open-mode": "append", "export": "ALL",
        "nodes": order.nodes, "ntasks-per-node": 1, "cpus-per-task": asked.cpus, "gpus-per-node": gpus or None,
        "mem": asked.memory_gb and f"{round(1024 * asked.memory_gb)}M", "partition": asked.partition,
        "time": asked.minutes and f"0:{round(60 * asked.minutes)}"}
    return ["sbatch", "--parsable", *(f"--{key}={value}" for key, value in wanted.items() if value is not None),
            "--requeue" if settings.requeue else "--no-requeue", *settings.flags, *asked.flags]


class Job:
    """A step's job, seen from the driver."""

    def __init__(self, order: Order, settings: Settings, held: lease.Lease) -> None:
        self.order, self.settings, self.held = order, settings, held
        self._left, self._look_at, self._seen = settings.again, 0.0, Seen("PENDING")

    def poll(self, seconds: float) -> int | None:
        code = lease.ended(self.order.work, self.held.token)
        if code == 0:
            lease.write(self.order.work, replace(self.held, heard=True))
            return 0
        if (now := time.monotonic()) >= self._look_at:
            self._look_at = now + (self.settings.poll_seconds if code is None else min(1.0, self.settings.poll_seconds))
            self._seen = seen = look(self.held.job)
            if seen.state not in (*_LIVE, _UNKNOWN):
                return self._over(seen)
        time.sleep(seconds)
        return None

    def _over(self, seen: Seen) -> int | None:
        if seen.state in ("COMPLETED", "FAILED", _GONE):
            _until(lambda: lease.ended(self.order.work, self.held.token) is not None, _SEEN)
            if (code := lease.ended(self.order.work, self.held.token)) is not None:
                return code
        if seen.state in _AGAIN and self._left:
            self._left -= 1
            _note(self.order, f"job {self.held.job} ended ({seen.state}); submitted again, it goes on from there")
            self.held = submit(self.order, self.settings)
            return None
        raise Lost(_why(seen, self.held.job, self.order, self.settings), 143 if seen.state == "CANCELLED" else 1)

    def stop(self) -> None:
        lease.write(self.order.work, replace(self.held, stop=True))
        if lease.begun(self.order.work, self.held.token):  # its supervisor ends it well
            _until(lambda: lease.ended(self.order.work, self.held.token) is not None, self.order.grace + 2)
        _ask("scancel", self.held.job)
        _until(lambda: look(self.held.job).state not in _LIVE, _CANCELLED_SECONDS)

    def waiting(self) -> str:
        if self._seen.state == "RUNNING" or lease.begun(self.order.work, self.held.token):
            return ""
        return f"waiting: Slurm's job {self.held.job} is {self._seen.state.lower()} ({self._seen.reason or 'new'})"


def start(order: Order, settings: Settings) -> Job:
    """Of an order that a job still works at, or has finished while nobody was looking, that job."""
    old = lease.read(order.work)
    if old is not None and not (old.stop or old.heard) and (job := old.job or _found(order, old.token)):
        if lease.ended(order.work, old.token) == 0 or look(job).state in (*_LIVE, _UNKNOWN):
            _note(order, f"job {job} of an earlier run works at it, or has; nothing is submitted")
            return Job(order, settings, replace(old, job=job))
    elif old is not None and old.job:
        _ask("scancel", old.job)
    return Job(order, settings, submit(order, settings))


def submit(order: Order, settings: Settings) -> lease.Lease:
    """Raises Lost where Slurm does not take the job."""
    held = lease.take(order.work, order.grace, lost=0.0)
    words = node.command_line(order, held.token, settings.python, node="$SLURM_PROCID")
    script = _SCRIPT.format(rendezvous=worker.RENDEZVOUS, words=shlex.join(words))
    environment = {name: value for name, value in order.environment.items()  # not those of a job around this process
                   if name == "SLURM_CONF" or not name.startswith(("SLURM_", "SBATCH_"))}
    done = subprocess.run(arguments(order, settings, _name(order, held.token)), input=script, capture_output=True,
                          text=True, env=environment)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Lost(f"Slurm did not take the job ({said}); what it may ask for is in launcher.{order.kind}")
    held = replace(held, job=done.stdout.strip().partition(";")[0])
    lease.write(order.work, held)
    _note(order, f"submitted as Slurm's job {held.job}")
    return held


def look(job: str) -> Seen:
    done = _ask("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T|%r|%N")
    if done.returncode != 0:
        return Seen(_GONE if "Invalid job id" in done.stderr else _UNKNOWN)
    line = done.stdout.partition("\n")[0]
    return Seen(*line.split("|")) if line.count("|") == 2 else Seen(_GONE)


def _why(seen: Seen, job: str, order: Order, settings: Settings) -> str:
    """One line: what happened to the job, and the way out."""
    asked, kind = vars(settings)[order.kind], f"launcher.{order.kind}"
    told = {
        "TIMEOUT": f"ran out of time after {asked.minutes or 'its partition'}{' minutes' * bool(asked.minutes)}; more: "
                   f"{kind}.minutes; several in a row: launcher.again=5",
        "OUT_OF_MEMORY": f"took more memory than it had asked for; more: {kind}.memory_gb, or less: "
                         "hardware.training.tokens_per_batch",
        "NODE_FAIL": f"lost its node ({seen.nodes})", "BOOT_FAIL": f"lost its node ({seen.nodes})",
        "PREEMPTED": "gave way to another one; to have it submitted again: launcher.again=5",
        "CANCELLED": "was cancelled", "DEADLINE": "reached its deadline",
        _GONE: "is no longer known to Slurm, and the step had not ended"}
    return f"Slurm's job {job} {told.get(seen.state, f'ended ({seen.state}) before the step did')}; go on"


def _name(order: Order, token: str) -> str:
    return f"alignloop-{order.run}-{order.step}-{token}"


def _found(order: Order, token: str) -> str:
    """The job of an order whose driver was killed before it could write down the id; "" where there is none."""
    done = _ask("squeue", "--noheader", "--states=all", f"--name={_name(order, token)}", "--format=%i")
    return done.stdout.strip().partition("\n")[0]


def _ask(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True)


def _until(what: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.2)


def _note(order: Order, line: str) -> None:
    with order.log.open("a") as file:
        file.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


def check(settings: Settings, workspace: Path) -> list[str]:
    missing = [name for name in ("sbatch", "squeue", "scancel") if shutil.which(name) is None]
    if missing:
        return [f"module: {missing[0]} is not found here; run where Slurm's commands are (a login node), or "
                "launcher=local"]
    known = _ask("sinfo", "--noheader", "--format=%R")
    if known.returncode != 0:
        said = (known.stderr.strip().splitlines() or ["no message"])[-1]
        return [f"module: Slurm does not answer ({said}); sinfo asks the same, or launcher=local"]
    there = known.stdout.split()
    return [f"{kind}.partition: no partition {asked.partition!r}, expected one of {', '.join(there)}"
            for kind in KINDS if (asked := vars(settings)[kind]).partition and asked.partition not in there]


LAUNCHER = Launcher(Settings, start, places=True, check=check)
