"""Whole runs under seeded random SIGKILLs: `python -m tests.chaos.kills --seed 1 --kills 300`.

A run is started, one of its processes is killed at a random moment, the same command is given again, until the run has
ended. What it made must be what an undisturbed run made, byte for byte; nothing finished is made twice; no process,
lock or temporary file is left. Every run adds a line to a ledger, from which the same command goes on. How the moment
and the victim are drawn depends on the seed alone; what the victim is doing then depends on the machine, too.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.chaos import small
from tests.chaos.profiles import ENGINE, PROFILES, RANKS, TURN, WATCHERS, Profile, kind_of, victims

_END = 60.0  # seconds that a run may take to end after a kill: its grace period, with room on a busy machine
_LONGEST = 600.0  # seconds of an undisturbed run
_TURNS = 3  # runs without a kill, after which a series ends
_FIND = 1.0  # seconds to wait for a victim to be there


@dataclass
class Seen:
    """One run's line in the ledger."""

    seed: int
    profile: str
    index: int
    commit: str = ""
    kills: list[dict[str, Any]] = field(default_factory=list)  # victim, what was hit, in which step, exit code
    missed: list[str] = field(default_factory=list)  # victims that were not there when their turn came
    faults: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    seconds: float = 0.0


def kill(name: str, mark: str, forking: small.Warm | None, rng: random.Random, workspace: Path) -> dict[str, Any]:
    """SIGKILL one of that name, all of them for "everything"; which kinds of process were hit, and in which step of
    the run. {} where none came up in time."""
    deadline = time.monotonic() + _FIND
    while not (found := victims(name, mark, forking)):
        if time.monotonic() > deadline:
            return {}
        time.sleep(0.02)
    chosen = found if name == "everything" else [rng.choice(sorted(found, key=lambda p: p.pid))]
    kinds, during, hit = [kind_of(p) for p in chosen], small.running(workspace, mark), []
    for process, kind in zip(chosen, kinds, strict=True):
        with contextlib.suppress(psutil.Error):
            if small.alive(process):
                process.send_signal(signal.SIGKILL)
                hit.append(kind)
    return {"victim": name, "hit": sorted(hit), "during": during} if hit else {}


def one_run(profile: str, seed: int, index: int, folder: Path, reference: Path, rows: Path,
            forking: small.Warm | None) -> Seen:
    """Run it to its end under the kills that (seed, profile, index) draw."""
    spec, seen, began = PROFILES[profile], Seen(seed, profile, index, small.commit()), time.monotonic()
    rng, steps = random.Random(f"{seed} {profile} {index}"), len(small.made(reference))
    mark, workspace = f"{os.getpid()}-{seed}-{profile}-{index}", folder / "workspace"
    environment = small.environment(folder, mark, forking.address if forking else None, **spec.environment)
    argv = small.command(workspace, rows, *spec.words, recipe=spec.recipe)
    log = folder / "output.txt"
    for turn in range(4 * spec.kills + 1):
        before, output = small.parts(workspace), log.stat().st_size if log.exists() else 0
        with log.open("ab") as file:
            process = subprocess.Popen(argv, env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
        known: set[psutil.Process] = set()
        made = _disturb(process, spec, workspace, mark, forking, rng, steps, len(seen.kills), known,
                        seen.missed)
        killed = [str(one["victim"]) for one in made]
        try:
            code = process.wait(_END if killed and killed[-1] not in WATCHERS else _LONGEST)
        except subprocess.TimeoutExpired:
            seen.faults.append(f"turn {turn}: no end after {killed}")
            kill("everything", mark, forking, rng, workspace)
            process.wait()
            break
        gone, left = small.until_nobody(mark, forking, _END, known)
        # One that was to end the run, and did not, came after its end.
        seen.kills += [{**one, "code": code, "gone": round(gone, 2)} for one in made
                       if one["during"] != small.END and (code or one["victim"] in WATCHERS)]
        seen.faults += [f"turn {turn}, {killed}: still running: {line}" for line in left]
        seen.faults += small.again(before, small.parts(workspace)) + small.left_over(workspace, folder / "tmp", False)
        said = log.read_bytes()[output:].decode(errors="replace")
        engine = sum(name in ENGINE for name in killed)  # killed again while it starts once more it fails, with its log
        if "Traceback" in said and engine < 2:
            seen.faults.append(f"turn {turn}, {killed}: a traceback in {log}")
        if code == 0:
            break
        if (not set(killed) - set(WATCHERS) and engine < 2) or code not in (1, 130, -signal.SIGKILL):
            seen.faults.append(f"turn {turn}, {killed}: exit code {code}: {said[-300:]!r}")
            break
    else:
        seen.faults.append("the run did not come to its end")
    if code == 0:
        seen.differing = small.differing(workspace, reference)
        seen.faults += small.odd_numbers(workspace, reference, len(seen.kills)) + small.twice(workspace)
        left = small.left_over(workspace, folder / "tmp", True)
        seen.faults += [line for line in left if not (spec.foreign and line.startswith(str(folder / "tmp")))]
    seen.seconds = round(time.monotonic() - began, 1)
    return seen


def _disturb(process: subprocess.Popen[bytes], spec: Profile, workspace: Path, mark: str, forking: small.Warm | None,
             rng: random.Random, steps: int, before: int, known: set[psutil.Process],
             missed: list[str]) -> list[dict[str, Any]]:
    """Kill until a kill ends the run, or it has ended by itself; what each kill hit, and in which step.

    Each comes a while after so many further steps have ended: so kills are spread over the whole run, however fast the
    machine is. steps: of the run. known: gets the processes there were before each. missed: gets
    the victims that were not there.
    """
    made: list[dict[str, Any]] = []
    most = 3 * steps // (2 * spec.kills)
    while before + len(made) < spec.kills:
        name, further, wait = rng.choice(spec.victims), rng.randint(0, most), rng.uniform(0.1, spec.wait)
        if not small.gets_on(process, workspace, 0 if name in RANKS else further):
            return made
        while name in RANKS and process.poll() is None and not victims(name, mark, forking):
            time.sleep(0.1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
            return made
        known |= set(small.marked(mark))
        if one := kill(name, mark, forking, rng, workspace):
            made.append({**one, "further": further, "after": round(wait, 2)})
            # A stage that had committed, and its supervisor, are not missed: the run goes on to further kills.
            if name not in WATCHERS and not small.gets_on(process, workspace, 2, 2 * _END):
                return made
        else:
            missed.append(name)
            most = 0  # the next one soon
    return made


def undisturbed(profile: str, place: Path, rows: Path, forking: small.Warm | None) -> Path:
    """The workspace of a run that nobody disturbs, made once."""
    spec, workspace, known = PROFILES[profile], place / profile, place / f"{profile}.made"
    if not known.exists():
        shutil.rmtree(workspace, ignore_errors=True)
        environment = small.environment(place, "undisturbed", forking.address if forking else None, **spec.environment)
        done = subprocess.run(small.command(workspace, rows, *spec.words, recipe=spec.recipe), env=environment,
                              text=True, capture_output=True, timeout=_LONGEST)
        assert done.returncode == 0, done.stdout + done.stderr
        known.touch()
    return workspace


@contextlib.contextmanager
def ready(place: Path, profiles: set[str]) -> Iterator[Callable[[str, int, int], Seen]]:
    """`play(profile, seed, index)`: one run in `place`, whose undisturbed runs and warm server serve them all."""
    rows = small.world(place / "rows")
    with contextlib.ExitStack() as stack:
        server = (stack.enter_context(small.warm(place)) if any(PROFILES[name].warm for name in profiles) else None)

        def play(profile: str, seed: int, index: int) -> Seen:
            forking = server if PROFILES[profile].warm else None
            reference = undisturbed(profile, place, rows, forking)
            folder = place / f"run-{seed}-{profile}-{index}"
            shutil.rmtree(folder, ignore_errors=True)
            seen = one_run(profile, seed, index, folder, reference, rows, forking)
            if not seen.faults and not seen.differing:
                shutil.rmtree(folder)
            return seen

        yield play


def summary(seen: list[Seen]) -> str:
    """What a series has come to: kills by victim and by the kind of step they came in, and what was found."""
    kills = [kill for one in seen for kill in one.kills]
    slowest = max((float(kill.get("gone", 0)) for kill in kills), default=0.0)
    return (f"{len(kills)} kills in {len(seen)} runs on {', '.join(sorted({one.commit for one in seen}))}\n"
            f"of: {_tally(str(kill['victim']) for kill in kills)}\n"
            f"hit: {_tally(kind for kill in kills for kind in kill['hit'])}\n"
            f"missed: {_tally(name for one in seen for name in one.missed)}\n"
            f"in: {_tally(str(kill['during']).partition('[')[0] for kill in kills)}\n"
            f"{sum(len(one.differing) for one in seen)} files differ, {sum(len(one.faults) for one in seen)} faults; "
            f"every process gone within {slowest:.1f} s; {sum(one.seconds for one in seen) / 60:.1f} minutes")


def _tally(names: Iterable[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in collections.Counter(names).most_common())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.kills", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=300, help="of the whole series, those in the ledger included")
    parser.add_argument("--profiles", default=",".join(TURN), help="kinds of runs, in turn")
    parser.add_argument("--place", type=Path, default=Path("build/chaos"), help="folder of the ledger and the runs")
    parser.add_argument("--read", action="store_true", help="say what the ledger holds, and end")
    options = parser.parse_args()
    options.place.mkdir(parents=True, exist_ok=True)
    place, turn = options.place.resolve(), options.profiles.split(",")
    ledger = place / "ledger.jsonl"
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    seen = [Seen(**line) for line in map(json.loads, lines) if line["seed"] == options.seed]
    if options.read:
        print(summary(seen))
        return 0
    with ready(place, set(turn)) as play:
        while sum(len(one.kills) for one in seen) < options.kills:
            name = turn[len(seen) % len(turn)]
            one = play(name, options.seed, sum(old.profile == name for old in seen))
            seen.append(one)
            with ledger.open("a") as file:
                file.write(json.dumps(dataclasses.asdict(one)) + "\n")
            print(f"{name} {one.index}: {len(one.kills)} kills, {one.seconds} s", *one.faults, *one.differing,
                  sep="\n    ", flush=True)
            if not any(one.kills for one in seen[-_TURNS:]):
                break
    print(summary(seen))
    return int(any(one.faults or one.differing for one in seen))


if __name__ == "__main__":
    sys.exit(main())
