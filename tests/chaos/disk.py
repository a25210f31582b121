"""A disk that fails in mid-run: `python -m tests.chaos.disk --seed 1 --faults 60`.

Every call of any process of a small run that writes into its workspace is counted (`faults.c`, preloaded). Then runs
are started in which one call, drawn by the seed, fails: once with EIO, or that one and every later one with ENOSPC (a
full disk), EDQUOT (a quota that is used up), EIO (a broken one) or EROFS (one that turned read-only). Afterwards the
disk is whole again and the same command is given: it must come to the bytes of an undisturbed run. Besides: a disk that
is slow, and one on which only what Prefect's server writes fails; both runs come to their end at once.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import errno
import mmap
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.chaos import small

_FORM = "@qqiii1000s"
PREFECT, SLOW = "ENOSPC for Prefect", "slow"
KINDS = (("EIO once", errno.EIO, False), ("EIO", errno.EIO, True), ("ENOSPC", errno.ENOSPC, True),
         ("EROFS", errno.EROFS, True))
FURTHER = (*KINDS, ("EDQUOT", errno.EDQUOT, True), (PREFECT, errno.ENOSPC, True), (SLOW, 0, False))
_DATABASE = 100  # writes that Prefect's server makes at the least
_DELAY = 5000  # microseconds of every write on a slow disk


class Disk:
    """The control file that every process of the run has mapped."""

    def __init__(self, path: Path, library: Path) -> None:
        path.write_bytes(bytes(struct.calcsize(_FORM)))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self.environment = {"LD_PRELOAD": str(library), "CHAOS_DISK": str(path)}

    def arm(self, folder: Path, left: int = 0, error: int = 0, always: bool = False, delay: int = 0) -> None:
        """Count from 0 the calls that write below `folder`; the `left`-th fails, 0: none. Each waits `delay` us."""
        self._memory[:] = struct.pack(_FORM, left, 0, error, always, delay, str(folder).encode())

    @property
    def seen(self) -> int:
        return struct.unpack(_FORM, self._memory)[1]


def built(place: Path) -> Path:
    """faults.c, compiled into `place`."""
    made = place / "faults.so"
    source = small.ROOT / "tests/chaos/faults.c"
    subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-o", made, source, "-ldl"], check=True)
    return made


@contextlib.contextmanager
def failing(place: Path) -> Iterator[tuple[Disk, small.Warm]]:
    """The library, built, and a warm server that has it loaded."""
    place.mkdir(parents=True, exist_ok=True)
    disk = Disk(place / "control", built(place))
    with small.warm(place, **disk.environment) as forking:
        yield disk, forking


def one(disk: Disk, forking: small.Warm, folder: Path, rows: Path, reference: Path, kind: int, call: int) -> list[str]:
    """A run whose `call`-th write fails, then the same command on a whole disk; every problem there is."""
    name, error, always = FURTHER[kind]
    workspace, mark, harmless = folder / "workspace", f"{os.getpid()}-disk-{call}", name in (PREFECT, SLOW)
    observers = {} if name == PREFECT else small.NOWHERE
    environment = small.environment(folder, mark, forking.address, **observers, **disk.environment)
    argv = small.command(workspace, rows, "engine=transformers")
    workspace.mkdir(parents=True)
    disk.arm(workspace / ".prefect" if name == PREFECT else workspace, call, error, always,
             _DELAY if name == SLOW else 0)
    problems = []
    for turn in ("failing", "whole"):
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=300)
        said = done.stdout + done.stderr
        if "Traceback" in said or "Error in sys.excepthook" in said:
            problems.append(f"{turn}: a traceback: {said[said.find('Traceback'):][-600:]!r}")
        if done.returncode not in ((0, 1, 2) if turn == "failing" and not harmless else (0,)):
            problems.append(f"{turn}: exit code {done.returncode}: {said[-300:]!r}")
        if done.returncode and "error: " not in done.stderr:
            problems.append(f"{turn}: no word of why: {said[-300:]!r}")
        _, left = small.until_nobody(mark, forking, 20)
        problems += [f"{turn}: still running: {line}" for line in left]
        problems += small.left_over(workspace, folder / "tmp", False)
        if always and not harmless and done.returncode == 0 and turn == "failing" and disk.seen >= call:
            problems.append("failing: exit code 0 although nothing could be written")
        disk.arm(workspace)
    if not problems:
        problems = small.differing(workspace, reference) + small.left_over(workspace, folder / "tmp", True)
    return [f"{name} at call {call}: {problem}" for problem in problems]


def undisturbed(disk: Disk, forking: small.Warm, place: Path, rows: Path) -> tuple[Path, int]:
    """The workspace of a run that nothing failed in, and how many calls wrote into it."""
    workspace = place / "undisturbed"
    workspace.mkdir(parents=True)
    disk.arm(workspace)
    environment = small.environment(place, "undisturbed", forking.address, **small.NOWHERE, **disk.environment)
    done = subprocess.run(small.command(workspace, rows, "engine=transformers"), env=environment, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return workspace, disk.seen


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.disk", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--place", type=Path, default=Path("build/chaos-disk"))
    options = parser.parse_args()
    place, bad, by_kind = options.place.resolve(), [], collections.Counter[str]()
    shutil.rmtree(place, ignore_errors=True)
    rows, rng = small.world(place / "rows"), random.Random(options.seed)
    with failing(place) as (disk, forking):
        reference, calls = undisturbed(disk, forking, place, rows)
        print(f"{calls} calls write into the workspace of an undisturbed run", flush=True)
        for number in range(options.faults):
            kind, folder = number % len(FURTHER), place / f"fault-{number}"
            name, call = FURTHER[kind][0], rng.randrange(1, calls + 1)
            call = 1 + call % _DATABASE if name == PREFECT else call
            problems = one(disk, forking, folder, rows, reference, kind, call)
            by_kind[name] += 1
            bad += problems
            print(f"{name} at call {call}", *problems, sep="\n    ", flush=True)
            if not problems:
                shutil.rmtree(folder)
    print(f"{options.faults} faults {dict(by_kind)}, seed {options.seed}, commit {small.commit()}: {len(bad)} problems")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
