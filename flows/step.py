"""Run one planned step: its own process under a supervisor, then commit. No Prefect, no Hydra, no torch here."""

import dataclasses
import errno
import functools
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import device_hours
from flows.failures import STOPPED, InputDamaged, StepFailed
from flows.place import HERE, Place, order
from flows.warm import Gone, Warm
from pipeline import files, runs, store, worker
from pipeline.errors import UserError
from pipeline.launchers import lease
from pipeline.launchers.contract import Lost, Started
from pipeline.plan import Planned, Step, key_parts, look_up
from pipeline.runs import log_path

TAIL_LINES = 40
# Threads that wait for each other spin only briefly before they sleep. With OpenMP's own count two training stages at
# once on two cores ran at 0.9 to 2.3 s a step; with this one at 0.64 s, and alone as fast as before (0.23 s).
_QUIET_THREADS = {"GOMP_SPINCOUNT": "3000"}
_POLL_SECONDS = 0.1
_CUT_SHORT, _NOTHING = 135, 2**20  # SIGBUS: a file mapped into memory that the disk, with so few bytes, did not hold
_GIVEN = ""  # files of the user, beside those that steps made
_DISK = {code: fault for fault, code in files.EXIT.items()}

Watch = Callable[[str, dict[str, Any] | None], None]  # (step, progress.json's content) several times a second


@dataclass(frozen=True)
class Launch:
    """Where a run lives and how its steps are launched."""

    workspace: Path
    run: str
    grace: float  # seconds between SIGTERM and SIGKILL
    timeout: float  # seconds a step may take, 0: no limit
    warm: Warm | None = None  # whose forks the steps are once it is ready
    apart: bool = False  # steps run beside each other, each with a progress.json of its own
    place: Place = HERE  # what starts them

    @property
    def folder(self) -> Path:
        return runs.folder(self.workspace, self.run)

    def progress_path(self, step: str) -> Path:
        return runs.progress_path(self.workspace, self.run, step if self.apart else "")


def ensure(launch: Launch, item: Planned, done: dict[str, store.Artifact], environment: dict[str, str], watch: Watch,
           force: bool = False) -> tuple[store.Artifact, bool]:
    """The step's artifact and whether it was there already. Waits if another process is computing the same one."""
    step, key = item.step, item.key
    assert key is not None
    while True:
        try:
            with store.lock(launch.workspace, step.stage, key, wait=1):
                found = None if force else look_up(launch.workspace, step, done).artifact
                if found is not None:
                    return found, True
                return _compute(launch, item, done, environment, watch), False
        except store.Busy as busy:
            watch(step.name, {"step": step.name, "done": 0, "total": 0, "unit": f"waiting: {busy}"})


def _compute(launch: Launch, item: Planned, done: dict[str, store.Artifact], environment: dict[str, str],
             watch: Watch) -> store.Artifact:
    step, key = item.step, item.key
    assert key is not None
    work = store.work_path(launch.workspace, step.stage, key)
    work.mkdir(parents=True, exist_ok=True)
    runs.event(launch.workspace, launch.run, step.name, "started", key=key)
    started = time.monotonic()
    damaged = _hashing(launch.workspace, step, done)
    try:
        code = _run_worker(launch, item, done, work, environment, watch)
    except Lost as why:
        runs.event(launch.workspace, launch.run, step.name, "failed", key=key, code=why.code)
        raise StepFailed(step.name, why.code, _said(launch, item), str(why)) from None
    problems = {} if code in STOPPED else damaged()
    full = code == _CUT_SHORT and shutil.disk_usage(work).free < _NOTHING
    if fault := errno.ENOSPC if full else _DISK.get(code, 0):
        for left_over in list(work.rglob(".*.tmp")):
            shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
        raise OSError(fault, os.strerror(fault), str(work))
    if code != 0 or problems:
        runs.event(launch.workspace, launch.run, step.name, "failed", key=key, code=code)
    if problems:
        shutil.rmtree(work)
        if _GIVEN in problems:
            raise UserError(*(f"{step.name}: {line}" for line in problems[_GIVEN]))
        for name in problems:
            store.set_aside(launch.workspace, done[name])
        raise InputDamaged(step.name, launch.workspace, launch.run,
                           [line for lines in problems.values() for line in lines])
    if code != 0:
        if code == 2 and (work / worker.PROBLEMS).exists():
            raise UserError(*(f"{step.name}: {p}" for p in json.loads((work / worker.PROBLEMS).read_text())))
        raise StepFailed(step.name, code, _said(launch, item))
    facts = json.loads((work / worker.RESULT).read_text())
    parts = key_parts(launch.workspace, step, done)
    if store.fingerprint(step.stage, **parts) != key:
        raise UserError(f"{step.name}: a file it reads was changed while it was reading; run again")
    runtime = dataclasses.asdict(step.runtime)
    artifact = store.commit(launch.workspace, step.stage, key, {
        **parts, **facts, "references": {name: [str(r) for r in refs] for name, refs in step.inputs.items()},
        "runtime": runtime, "devices": device_hours.held(runtime), "step": step.name, "iteration": step.iteration,
        "run": launch.run, "process_seconds": round(time.monotonic() - started, 3), "git": _git_revision(),
        "created": round(time.time(), 3)})
    seconds = round(time.monotonic() - started, 3)
    runs.event(launch.workspace, launch.run, step.name, "finished", key=key, seconds=seconds)
    return artifact


def _said(launch: Launch, item: Planned) -> list[str]:
    """The last lines of this try's log: an earlier one's tell of another end."""
    lines = runs.tail(log_path(launch.workspace, launch.run, item.step.name), 10 * TAIL_LINES)
    begun = max((i for i, line in enumerate(lines) if line.startswith("--- ") and line.endswith(f" key {item.key}")),
                default=-1)
    return lines[begun + 1:][-TAIL_LINES:]


def _hashing(workspace: Path, step: Step, done: dict[str, store.Artifact]) -> Callable[[], dict[str, list[str]]]:
    """Begin to hash what the step reads, in a thread, while the stage works. What is returned waits for the end of it
    and gives the damaged files by the step that made them; as _GIVEN the user's that are not what the remembered hash,
    which is in the step's key, says. Raises UserError where one cannot be read.
    """
    found: dict[str, list[str]] = {}
    failed: list[OSError] = []
    given = store.cached_hashes(workspace, step.plugin.files(step.settings, step.runtime))

    def work() -> None:
        try:
            for ref in dict.fromkeys(ref for refs in step.inputs.values() for ref in refs):
                if problems := store.damaged_files(done[ref.step], ref.part):
                    found[ref.step] = [*found.get(ref.step, []), *problems]
            if changed := [path for path, known in given.items() if files.file_hash(path) != known]:
                found[_GIVEN] = [f"{path}: content changed, though its size and time did not; where the disk did it, "
                                 f"copy it again, where it is meant, say so: touch {path}" for path in changed]
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)  # a run that is stopped does not wait for it
    thread.start()

    def result() -> dict[str, list[str]]:
        thread.join()
        if failed:
            raise UserError(f"{step.name}: what it reads cannot be checked ({failed[0]}); run again")
        return found

    return result


def _run_worker(launch: Launch, item: Planned, done: dict[str, store.Artifact], work: Path,
                environment: dict[str, str], watch: Watch) -> int:
    step = item.step
    for name in (step.name, ""):
        runs.progress_path(launch.workspace, launch.run, name).unlink(missing_ok=True)
    path = work / worker.SPEC
    files.write_atomic(path, json.dumps(spec(launch, item, done, work)))
    log = log_path(launch.workspace, launch.run, step.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    _note(log, f"{step.name} key {item.key}")
    asked = order(launch.place, step, path, log, launch.grace, launch.timeout, {**around(), **environment}, launch.run)
    if launch.warm is not None and launch.warm.ready():
        lease.clear(work, launch.grace)
        try:
            fork = launch.warm.fork(path, log, launch.grace, launch.timeout, {**asked.environment})
            return _watched(fork, launch, step.name, watch)
        except Gone as why:
            _note(log, f"{step.name} starts anew, cold: {why}")
    return _watched(launch.place.start(asked), launch, step.name, watch)


def around() -> dict[str, str]:
    """The environment of every process of a run's steps."""
    return {**_QUIET_THREADS, **os.environ, "PYTHONUNBUFFERED": "1"}


def _note(log: Path, line: str) -> None:
    with log.open("a") as file:
        file.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


def _watched(process: Started, launch: Launch, step: str, watch: Watch) -> int:
    try:
        while (code := process.poll(_POLL_SECONDS)) is None:
            why = process.waiting()
            waiting = {"step": step, "done": 0, "total": 0, "unit": why}
            watch(step, waiting if why else runs.progress(launch.workspace, launch.run, step))
    except (Gone, Lost):
        raise
    except BaseException:
        process.stop()
        raise
    return code


def spec(launch: Launch, item: Planned, done: dict[str, store.Artifact], work: Path) -> dict[str, Any]:
    """What the worker is told: everything the stage gets, as plain data."""
    step = item.step
    return {"stage": step.stage, "step": step.name, "run": launch.run, "work": str(work), "seed": step.seed,
            "settings": dataclasses.asdict(step.settings), "runtime": dataclasses.asdict(step.runtime),
            "inputs": {n: [str(done[r.step].path / r.part) for r in refs] for n, refs in step.inputs.items()},
            "digests": {n: [done[r.step].digest(r.part) for r in refs] for n, refs in step.inputs.items()},
            "metrics": str(launch.folder / "metrics.jsonl"),
            "progress": str(launch.progress_path(step.name))}


@functools.cache
def _git_revision() -> str:
    """The code's revision, "+" when it has uncommitted changes; recorded, never hashed."""
    git = shutil.which("git")
    here = Path(__file__).resolve().parent.parent
    if git is None or not (here / ".git").exists():
        return ""
    ask = [git, "-C", str(here)]
    revision = subprocess.run([*ask, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    dirty = subprocess.run([*ask, "status", "--porcelain"], capture_output=True, text=True).stdout.strip()
    return revision + ("+" if dirty else "")
