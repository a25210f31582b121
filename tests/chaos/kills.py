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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.chaos import small

_STARTED = 2.0  # seconds until the first stage of a resumed run works
_END = 60.0  # seconds that a run may take to end after a kill: its grace period, with room on a busy machine
_USUAL = 20.0  # seconds of an undisturbed run, for the draw of moments: on a busy machine it takes longer
_LONGEST = 600.0  # seconds of an undisturbed run
_FIND = 3.0  # seconds to wait for a victim to be there


def _has(*words: str) -> Callable[[list[str]], bool]:
    return lambda line: all(word in line for word in words)


def _inner(word: str) -> Callable[[list[str]], bool]:
    return lambda line: word in line and not {"pipeline.supervisor", "pipeline.engines.vllm.keeper"} & set(line)


VICTIMS: dict[str, Callable[[list[str]], bool]] = {  # by the words of their command lines
    "command": _has("flows.cli"),
    "outer supervisor": _has("pipeline.supervisor", "flows.driver"),
    "driver": _inner("flows.driver"),
    "stage supervisor": _has("pipeline.supervisor", "pipeline.worker"),
    "stage": _inner("pipeline.worker"),
    "keeper": _has("pipeline.engines.vllm.keeper"),
    "engine supervisor": lambda line: (_has("pipeline.supervisor", "vllm.entrypoints.openai.api_server")(line)
                                       and "pipeline.engines.vllm.keeper" not in line),
    "engine": _inner("vllm.entrypoints.openai.api_server"),
    "core": lambda line: any("EngineCore" in word for word in line),
    "prefect": _has("uvicorn"),
    "tracker": _inner("pipeline.tracking"),
    "everything": lambda line: True,
}
WATCHERS = ("prefect", "tracker", "keeper", "engine supervisor", "engine", "core")  # the run may go on without them
FIVE = ("command", "outer supervisor", "driver", "stage supervisor", "stage")


@dataclass(frozen=True)
class Profile:
    """A kind of run: what it is told beside `small.SMALL`, and who is killed in it."""

    words: tuple[str, ...] = ("engine=transformers",)
    victims: tuple[str, ...] = (*FIVE, "everything")
    kills: int = 8  # of one run
    warm: bool = True  # stages fork from a process that has torch imported
    environment: dict[str, str] = field(default_factory=lambda: small.NOWHERE)
    recipe: str = "pco"
    foreign: bool = False  # it starts programs that keep temporary folders of their own: W&B, vLLM


PROFILES = {
    "plain": Profile(),
    "cold": Profile(warm=False, kills=4),
    "observed": Profile(
        words=("engine=transformers", "tracking=wandb"), kills=5, environment={"WANDB_MODE": "offline"}, foreign=True,
        victims=("prefect", "prefect", "tracker", "tracker", "command", "driver", "everything")),
    "two": Profile(words=("engine=transformers", "hardware.training.processes=2", "hardware.training.strategy=ddp",
                          "iterations=1"), victims=("rank", "rank", "launcher", "stage supervisor", "everything")),
    "vllm": Profile(
        words=("engine.max_sequences=16", "model.arch.hidden_size=64", "model.arch.intermediate_size=128"),
        foreign=True,
        victims=("engine", "core", "keeper", "engine supervisor", "stage", "driver", "everything")),
}
# Most runs are of the kind that costs least; one of these a turn.
TURN = ("plain", "plain", "plain", "observed", "plain", "plain", "two", "plain", "plain", "cold")


@dataclass
class Seen:
    """One run's line in the ledger."""

    seed: int
    profile: str
    index: int
    commit: str = ""
    kills: list[dict[str, object]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    seconds: float = 0.0


def victims(name: str, mark: str, forking: small.Warm | None) -> list[psutil.Process]:
    """The living processes of that name. With a warm server a stage is its fork."""
    if name == "stage" and forking:
        return forking.forks()
    found = small.marked(mark)
    if name in ("rank", "launcher"):
        ranks = [p for p in found if _is_rank(p)]
        return ranks if name == "rank" else [p for p in map(psutil.Process.parent, ranks[:1]) if p is not None]
    chosen = [p for p in found if VICTIMS[name](small.words(p))]
    return chosen + forking.forks() if name == "everything" and forking else chosen


def _is_rank(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.environ().get("RANK") is not None and "pipeline.worker" in process.cmdline()
    return False


def kill(name: str, mark: str, forking: small.Warm | None, rng: random.Random) -> str:
    """SIGKILL one of that name, all of them for "everything"; what was killed, "" where none came up in time."""
    deadline = time.monotonic() + _FIND
    while not (found := victims(name, mark, forking)):
        if time.monotonic() > deadline:
            return ""
        time.sleep(0.02)
    chosen = found if name == "everything" else [rng.choice(sorted(found, key=lambda p: p.pid))]
    for process in chosen:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    return f"{len(chosen)} processes" if name == "everything" else "killed"


def one_run(profile: str, seed: int, index: int, folder: Path, reference: Path, rows: Path, took: float,
            forking: small.Warm | None) -> Seen:
    """Run it to its end under the kills that (seed, profile, index) draw. took: seconds the undisturbed run took."""
    spec, seen, began = PROFILES[profile], Seen(seed, profile, index), time.monotonic()
    rng = random.Random(f"{seed} {profile} {index}")
    mark, workspace = f"{os.getpid()}-{seed}-{profile}-{index}", folder / "workspace"
    environment = small.environment(folder, mark, forking.address if forking else None, **spec.environment)
    argv = small.command(workspace, rows, *spec.words, recipe=spec.recipe)
    log = folder / "output.txt"
    for turn in range(3 * spec.kills + 1):
        before, output = small.parts(workspace), log.stat().st_size if log.exists() else 0
        with log.open("ab") as file:
            process = subprocess.Popen(argv, env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
        killed = _disturb(process, spec, workspace, mark, forking, rng, took, seen)
        try:
            code = process.wait(_END if killed and killed[-1] not in WATCHERS else _LONGEST)
        except subprocess.TimeoutExpired:
            seen.faults.append(f"turn {turn}: no end after {killed}")
            kill("everything", mark, forking, rng)
            process.wait()
            break
        gone, left = small.until_nobody(mark, forking, _END)
        if seen.kills and killed:
            seen.kills[-1] |= {"code": code, "gone": round(gone, 2)}
        seen.faults += [f"turn {turn}, {killed}: still running: {line}" for line in left]
        seen.faults += small.again(before, small.parts(workspace)) + small.left_over(workspace, folder / "tmp", False)
        said = log.read_bytes()[output:].decode(errors="replace")
        if "Traceback" in said:
            seen.faults.append(f"turn {turn}, {killed}: a traceback in {log}")
        if code == 0:
            break
        if not killed or code not in (1, 130, -signal.SIGKILL):
            seen.faults.append(f"turn {turn}, {killed}: exit code {code}: {said[-300:]!r}")
            break
    else:
        seen.faults.append("the run did not come to its end")
    if code == 0:
        seen.differing = small.differing(workspace, reference)
        seen.faults += small.odd_numbers(workspace, reference, len(seen.kills))
        left = small.left_over(workspace, folder / "tmp", True)
        seen.faults += [line for line in left if not (spec.foreign and line.startswith(str(folder / "tmp")))]
    seen.seconds = round(time.monotonic() - began, 1)
    return seen


def _disturb(process: subprocess.Popen[bytes], spec: Profile, workspace: Path, mark: str, forking: small.Warm | None,
             rng: random.Random, took: float, seen: Seen) -> list[str]:
    """Kill until a kill ends the run, or it has ended by itself; the names of those killed."""
    killed: list[str] = []
    while len(seen.kills) < spec.kills:
        name, wait = rng.choice(spec.victims), rng.uniform(0.1, _STARTED + 2 * min(took, _USUAL) / spec.kills)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
            return killed
        if what := kill(name, mark, forking, rng):
            killed.append(name)
            during = small.running(workspace)
            seen.kills.append({"victim": name, "after": round(wait, 2), "during": during, "what": what})
            if name not in WATCHERS:
                return killed
        elif process.poll() is not None:
            return killed
    return killed


def undisturbed(profile: str, place: Path, rows: Path, forking: small.Warm | None) -> tuple[Path, float]:
    """The workspace of a run that nobody disturbs, made once, and the seconds it took."""
    spec, workspace, known = PROFILES[profile], place / profile, place / f"{profile}.json"
    if not known.exists():
        shutil.rmtree(workspace, ignore_errors=True)
        environment = small.environment(place, "undisturbed", forking.address if forking else None, **spec.environment)
        began = time.monotonic()
        done = subprocess.run(small.command(workspace, rows, *spec.words, recipe=spec.recipe), env=environment,
                              text=True, capture_output=True, timeout=_LONGEST)
        assert done.returncode == 0, done.stdout + done.stderr
        known.write_text(json.dumps(round(time.monotonic() - began, 2)))
    return workspace, float(json.loads(known.read_text()))


@contextlib.contextmanager
def ready(place: Path, profiles: set[str]) -> Iterator[Callable[[str, int, int], Seen]]:
    """`play(profile, seed, index)`: one run in `place`, whose undisturbed runs and warm server serve them all."""
    rows = small.world(place / "rows")
    with contextlib.ExitStack() as stack:
        server = (stack.enter_context(small.warm(place)) if any(PROFILES[name].warm for name in profiles) else None)

        def play(profile: str, seed: int, index: int) -> Seen:
            forking = server if PROFILES[profile].warm else None
            reference, took = undisturbed(profile, place, rows, forking)
            folder = place / f"run-{seed}-{profile}-{index}"
            shutil.rmtree(folder, ignore_errors=True)
            seen = one_run(profile, seed, index, folder, reference, rows, took, forking)
            if not seen.faults and not seen.differing:
                shutil.rmtree(folder)
            return seen

        yield play


def summary(seen: list[Seen]) -> str:
    """What a series has come to, in one paragraph."""
    kills = [kill for one in seen for kill in one.kills]
    by_victim = collections.Counter(str(kill["victim"]) for kill in kills)
    slowest = max((float(str(kill.get("gone", 0))) for kill in kills), default=0.0)
    return (f"{len(kills)} kills in {len(seen)} runs ({', '.join(f'{n} {v}' for n, v in by_victim.most_common())}); "
            f"{sum(len(one.differing) for one in seen)} files differ, {sum(len(one.faults) for one in seen)} faults; "
            f"every process gone within {slowest:.1f} s; {sum(one.seconds for one in seen) / 60:.1f} minutes")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.kills", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=300, help="of the whole series, those in the ledger included")
    parser.add_argument("--profiles", default=",".join(TURN), help="kinds of runs, in turn")
    parser.add_argument("--place", type=Path, default=Path("build/chaos"), help="folder of the ledger and the runs")
    options = parser.parse_args()
    options.place.mkdir(parents=True, exist_ok=True)
    place, turn = options.place.resolve(), options.profiles.split(",")
    ledger = place / "ledger.jsonl"
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    seen = [Seen(**line) for line in map(json.loads, lines) if line["seed"] == options.seed]
    with ready(place, set(turn)) as play:
        while sum(len(one.kills) for one in seen) < options.kills:
            name = turn[len(seen) % len(turn)]
            one = play(name, options.seed, sum(old.profile == name for old in seen))
            one.commit = small.commit()
            seen.append(one)
            with ledger.open("a") as file:
                file.write(json.dumps(dataclasses.asdict(one)) + "\n")
            print(f"{name} {one.index}: {len(one.kills)} kills, {one.seconds} s", *one.faults, *one.differing,
                  sep="\n    ", flush=True)
    print(summary(seen))
    return int(any(one.faults or one.differing for one in seen))


if __name__ == "__main__":
    sys.exit(main())
