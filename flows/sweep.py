"""`align sweep`: a named set of ordinary runs over one store, `jobs` at a time. What is equal is computed once.

`sweeps/NAME/sweep.json` holds the words and the runs; the runs and the store hold what is done, so the same command, or
`align sweep sweep=NAME`, goes on. An arm that fails stops no other; all that failed is told at the end.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from flows import machine, screen, sweep_plan
from flows.comparison import compare
from flows.inspection import load_run
from flows.prepare import CheckedRun, prepare
from flows.sweep_record import Arm, Sweep, folder, load, save
from flows.sweep_words import arms, sweep_name
from pipeline import files, runs, supervisor, waiting
from pipeline.errors import UserError

_POLL = 0.2  # seconds between two looks at the running arms
_EVERY = 30.0  # seconds between lines of progress
_TAIL = 6  # lines of a failed arm's log
_OWN = ("sweep", "jobs")


def sweep(words: list[str], only_plan: bool) -> int:
    """Run every arm, or go on with them. Exit code 0 all done, 1 an arm failed, 130 interrupted.

    Raises UserError with the problems of every arm before the first one starts.
    """
    typed = dict(word.partition("=")[::2] for word in words)
    place = Path(typed.get("workspace", "workspace")).expanduser().resolve()
    made = described([word for word in words if word.partition("=")[0] not in _OWN], typed.get("sweep"), place)
    return go(made, place, typed.get("jobs", "1"), only_plan, lambda done: _compared(place, done))


def go(made: Sweep, place: Path, jobs: str, only_plan: bool, conclude: Callable[[list[str]], None]) -> int:
    """Plan the sweep and, unless that was all, run it: see `sweep`. conclude: tells of the runs that are done."""
    prepared = checked(made, place)
    sweep_plan.show(made.name, prepared, sweep_plan.sweep_plan(prepared))
    shares = devices(jobs, prepared)
    if only_plan:
        return 0
    try:
        with files.locked(folder(place, made.name) / ".lock", str(os.getpid()), 1.0):
            save(place, made)
            ended = _run(made, place, shares)
    except files.Held as holder:
        raise UserError(f"sweep: {made.name!r} is going on in process {holder}; stop that first") from None
    return _told(made, place, ended, conclude)


def described(words: list[str], name: str | None, place: Path) -> Sweep:
    """The sweep that the words mean; words that say no more than its name and place: the one that is there."""
    if any(word.startswith("run=") for word in words):
        raise UserError("run: the runs of a sweep are named after it and what is their own; give sweep=NAME")
    if all(word.startswith("workspace=") for word in words):
        if name is None:
            raise UserError("recipe: missing, say which one: align sweep recipe=NAME key=A,B; or sweep=NAME to go on")
        return load(place, name)
    words = [word for word in words if not word.startswith("workspace=")]
    name = sweep_name(name, words)
    return Sweep(name, words, arms(name, words))


def checked(made: Sweep, place: Path) -> list[CheckedRun]:
    """Every arm, ready to start. Raises UserError with each problem once, and whose it is."""
    prepared, problems = [], dict[str, list[str]]()
    for arm in made.arms:
        try:
            prepared.append(prepare([*arm.words, f"run={arm.run}", f"workspace={place}"]))
        except UserError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(arm.run)
    if problems:
        raise UserError(*(problem if len(whose) == len(made.arms) else f"{', '.join(whose)}: {problem}"
                          for problem, whose in problems.items()))
    return prepared


def devices(jobs: str, prepared: Sequence[CheckedRun]) -> list[list[str]]:
    """The devices of each job: CUDA devices where there are any, else processor cores. One job has all of them.

    Raises UserError for more jobs than the devices that one run asks for allow.
    """
    if not jobs.isdigit() or int(jobs) < 1:
        raise UserError(f"jobs: expected a whole number, 1 <= x, got {jobs!r}")
    found = machine.gpus() or [str(core) for core in sorted(os.sched_getaffinity(0))]
    kind = "CUDA devices" if machine.gpus() else "processor cores"
    each = max(int(run.run.config["hardware"]["training"]["processes"]) for run in prepared)
    if int(jobs) * each > len(found) and int(jobs) > 1:
        raise UserError(f"jobs: {jobs} at a time with {each} each, but there are {len(found)} {kind}, expected at most "
                        f"{max(1, len(found) // each)}")
    return [found[i::int(jobs)] for i in range(int(jobs))]


def _run(made: Sweep, place: Path, shares: list[list[str]]) -> dict[str, int]:
    """Every arm's exit code, by its run's name; those that were not started are missing."""
    waiting, ended, started = list(made.arms), dict[str, int](), dict[str, float]()
    running: dict[int, tuple[Arm, subprocess.Popen[bytes]]] = {}
    stopped: list[int] = []
    before = {number: signal.signal(number, lambda received, _frame: stopped.append(received))
              for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
              if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN}  # ignored under nohup
    said, number = time.monotonic(), 0
    while running or (waiting and not stopped):
        for job in (job for job in range(len(shares)) if job not in running and waiting and not stopped):
            arm, number = waiting.pop(0), number + 1
            process = _start(arm, place, folder(place, made.name), shares, job)
            running[job], started[arm.run] = (arm, process), time.monotonic()
            screen.say(f"  {number}/{len(made.arms)} {arm.run}")
        for process in [process for _, process in running.values()] if stopped else ():
            process.send_signal(signal.SIGTERM)
        time.sleep(_POLL)
        for job, (arm, process) in list(running.items()):
            if (code := process.poll()) is not None:
                ended[arm.run] = code
                del running[job]
                screen.say(f"  {'done  ' if code == 0 else 'ended ' if stopped else 'FAILED'} {arm.run}, "
                           f"{(time.monotonic() - started[arm.run]) / 60:.1f} min")
        if time.monotonic() - said > _EVERY:
            said = time.monotonic()
            for arm, _ in running.values():
                screen.say(f"  ...    {arm.run}{_progress(place, arm.run)}")
    for received, handler in before.items():
        signal.signal(received, handler)
    return {**ended, **({"": 130} if stopped else {})}


def _start(arm: Arm, place: Path, logs: Path, shares: list[list[str]], job: int) -> subprocess.Popen[bytes]:
    """`align run` of the arm, on its share of the devices, its output in a log of its own."""
    command = [sys.executable, "-P", "-m", "flows.cli", "run", *arm.words, f"run={arm.run}", f"workspace={place}"]
    environment = {**os.environ, **supervisor.imports()}
    mine: set[int] = set()
    if len(shares) > 1 and machine.gpus():
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(shares[job])
    elif len(shares) > 1:
        mine = set(map(int, shares[job]))
    bind = (lambda: os.sched_setaffinity(0, mine)) if mine else None
    log = logs / f"{arm.run}.log"
    log.unlink(missing_ok=True)  # of an earlier try; what the steps printed is kept with the run
    watched = supervisor.command_line(command, log=log, grace=120, spare=waiting.folder(place))
    return subprocess.Popen(watched, env=environment, start_new_session=True, preexec_fn=bind)


def _progress(place: Path, run: str) -> str:
    record = runs.load(place, run)
    if record is None:
        return ""
    done = sum(step["state"] in ("done", "cached") for step in record.steps)
    told = [f": {done} of {len(record.steps)} steps done"]
    for step in [step["name"] for step in record.steps if step["state"] == runs.RUNNING]:
        state = runs.progress(place, run, step)
        told.append(f"{step} {state['done']:g}/{state['total']:g} {state['unit']}" if state else step)
    return ", ".join(told)


def _compared(place: Path, done: list[str]) -> None:
    """The table of the runs that judge a policy."""
    if judged := [run for run in done if any(step["stage"] == "evaluate" for step in load_run(place, run).steps)]:
        screen.say("")
        compare([*judged, f"workspace={place}"])


def _told(made: Sweep, place: Path, ended: dict[str, int], conclude: Callable[[list[str]], None]) -> int:
    """What became of the arms: what is done, what failed and how to go on."""
    stopped = ended.pop("", 0)
    go_on = f"{made.command or f'align sweep sweep={made.name}'} workspace={place}"
    if stopped:
        left = len(made.arms) - sum(code == 0 for code in ended.values())
        screen.say(f"interrupted, {left} of {len(made.arms)} runs are left; go on with: {go_on}")
        return 130
    done, failed = ([arm.run for arm in made.arms if (ended[arm.run] == 0) is well] for well in (True, False))
    if done:
        conclude(done)
    for run in failed:
        log = folder(place, made.name) / f"{run}.log"
        screen.say("\n".join([f"\n{run} failed, exit code {ended[run]}; last lines of {log}:",
                              *(f"    {line}" for line in runs.tail(log, _TAIL)),
                              f"  it alone: align run run={run} workspace={place}"]))
    if failed:
        screen.say(f"\n{len(failed)} of {len(made.arms)} runs failed; what is done stays, go on with: {go_on}")
    return 1 if failed else 0
