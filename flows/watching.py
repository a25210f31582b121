"""`align logs`, `align stop`: look over the shoulder of a run from another terminal, and end it."""

import time
from pathlib import Path

import psutil

from flows import kept_engine, screen
from flows.inspection import folder_of, load_run
from pipeline import runs
from pipeline.errors import UserError, command, nearest

_POLL_SECONDS = 0.3
_TO_TELL = ("running", runs.FAILED, runs.INTERRUPTED)  # states of the step whose log is meant, the first before others


def logs(workspace: str, name: str, step: str | None, follow: bool) -> int:
    """Print a step's log: of the one named, or that is running, or has failed, or ran last. `follow`: until the run
    ends, going on with the next step's.
    """
    place = folder_of(workspace)
    run = load_run(place, name)
    known = {path.stem: path for path in sorted((runs.folder(place, name) / "logs").glob("*.log"))}
    if step is not None and step not in known:
        names = [s["name"] for s in run.steps]
        raise UserError(f"{step}: it has not run yet, so it has no log" if step in names else
                        f"{step}: the run has no such step{nearest(step, {*names, *known})}")
    found = known.get(step or _telling(place, name))
    if found is None:
        raise UserError(f"{name}: no log yet, no step was computed")
    screen.errors.print(f"--- {found}", markup=False)
    with found.open(errors="replace") as file:
        while True:
            going_on = follow and _going_on(place, name)  # asked before the reading, so the last words are read, too
            next_one = _telling(place, name) if going_on and step is None else ""
            _print(file.read())
            if not going_on:
                return 0
            if next_one not in ("", found.stem):
                return logs(workspace, name, None, follow)
            time.sleep(_POLL_SECONDS)


def _print(text: str) -> None:
    """As the stage wrote it; what would act on the terminal is shown, a bar that was drawn over itself is lines."""
    if text:
        print(screen.harmless(text.replace("\r\n", "\n").replace("\r", "\n")), end="", flush=True)


def _going_on(place: Path, name: str) -> bool:
    return runs.outcome(place, load_run(place, name)) == runs.RUNNING


def _telling(place: Path, name: str) -> str:
    """The step whose log says what the run is doing or why it ended; "" where none has one."""
    folder = runs.folder(place, name) / "logs"
    steps = [s for s in load_run(place, name).steps if (folder / f"{s['name']}.log").exists()]
    for state in _TO_TELL:
        for s in steps:
            if s["state"] == state:
                return str(s["name"])
    return max((s["name"] for s in steps), key=lambda s: (folder / f"{s}.log").stat().st_mtime, default="")


def stop(workspace: str, name: str | None, engine: bool = False) -> int:
    """End a run that is going on, as Ctrl-C in its terminal would, or the engine that waits for the next one; wait
    until it has ended.
    """
    if engine:
        if name is not None:
            raise UserError("--engine: ends the engine that waits, which is no run's: leave RUN out")
        return kept_engine.stop(folder_of(workspace))
    if name is None:
        raise UserError("RUN: missing, say which run; align status lists them")
    place = folder_of(workspace)
    run = load_run(place, name)
    if not _going_on(place, name):
        screen.say(f"{name} is not going on, it is {runs.outcome(place, run)}")
        return 0
    driver = _driver(place, name)
    if driver is None:
        raise UserError(f"{name}: its process is not on this machine, or ends just now; stop it where it was started")
    grace = float(run.config["hardware"]["grace_seconds"]) + 15
    screen.say(f"stopping, at most {grace:.0f} s")
    driver.terminate()
    deadline = time.monotonic() + grace
    while _going_on(place, name):
        if time.monotonic() > deadline:
            screen.problems([f"{name}: process {driver.pid} has not ended yet"])
            return 1
        time.sleep(_POLL_SECONDS)
    screen.say(f"stopped; go on with:{command(place, 'run', f'run={name}')}")
    return 0


def _driver(place: Path, name: str) -> psutil.Process | None:
    """The process that holds the run's lock, if it is a driver of this very run."""
    try:
        process = psutil.Process(int((runs.folder(place, name) / ".lock").read_text()))
        return process if {"flows.driver", str(place), name} <= set(process.cmdline()) else None
    except (ValueError, OSError, psutil.Error):
        return None
