"""A Slurm of its own in a folder: munged, slurmctld and two slurmds on this machine, as the distribution has them."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import supervisor

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "sinfo")
CONF = """ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SlurmdParameters=config_overrides
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool-%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd-%n.pid
SlurmctldTimeout=10
SlurmdTimeout=10
KillWait=5
InactiveLimit=0
MinJobAge=600
JobAcctGatherType=jobacct_gather/none
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
NodeName=one NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=4000
NodeName=two NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def conf(place: Path) -> Path:
    with contextlib.ExitStack() as stack:
        free = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = [one.getsockname()[1] for one in free]
    (place / "slurm.conf").write_text(CONF.format(place=place, ports=ports, user=getpass.getuser()))
    return place / "slurm.conf"


@contextlib.contextmanager
def cluster(place: Path) -> Iterator[dict[str, str]]:
    """The environment in which sbatch finds it. Skips where it is not installed or does not start."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        pytest.skip(f"{missing[0]} is not installed: apt-get install slurm-wlm")
    (place / "state").mkdir()
    (place / "munge.key").write_bytes(os.urandom(1024))
    (place / "munge.key").chmod(0o400)
    written = {"SLURM_CONF": str(conf(place))}
    started = []
    try:
        munge = ["munged", "-F", "--force", f"--key-file={place}/munge.key", f"--socket={place}/munge.socket",
                 f"--pid-file={place}/munged.pid", f"--log-file={place}/munged.log", f"--seed-file={place}/seed"]
        for name, words in {"munged": munge, "slurmctld": ["slurmctld", "-D"], "one": ["slurmd", "-D", "-N", "one"],
                            "two": ["slurmd", "-D", "-N", "two"]}.items():
            care = supervisor.command_line(words, log=place / f"{name}.out", grace=5)
            started.append(subprocess.Popen(care, env={**os.environ, **written}))
        deadline = time.monotonic() + 30
        while nodes(written) != ["idle", "idle"]:
            if time.monotonic() > deadline:
                pytest.skip(f"Slurm does not start here: {(place / 'slurmctld.out').read_text()[-300:]}")
            time.sleep(0.2)
        yield written
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(30)


def nodes(environment: dict[str, str]) -> list[str]:
    """The states of the nodes."""
    return asked(environment, "sinfo", "--noheader", "-N", "--format=%T")


def jobs(environment: dict[str, str], *states: str) -> list[str]:
    """The ids of all jobs so far, or of those in these states."""
    return asked(environment, "squeue", "--noheader", f"--states={','.join(states) or 'all'}", "--format=%i")


def asked(environment: dict[str, str], *words: str) -> list[str]:
    return subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment}).stdout.split()
