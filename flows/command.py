"""`align run`, `align plan`, `align stage`: from overrides to a run that goes on in a supervised process."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

from flows import cuda, data_read, gates, launching, memory, progress, screen, trainings, watcher
from flows.estimate import estimate, shortage
from flows.prepare import CheckedRun, prepare
from flows.summary import conclude
from pipeline import plan, runs, store, supervisor, waiting
from pipeline.errors import UserError, command, nearest
from pipeline.plan import Planned


def run(overrides: list[str]) -> int:
    """Start the run that `overrides` describe, or resume it. Returns the exit code of `align run`."""
    prepared = prepare(overrides)
    started = time.monotonic()
    planned = plan.look_up_all(prepared.workspace, prepared.steps)
    _say_notes(prepared, planned)
    screen.paragraph(f"run {prepared.run.name}: {len(planned)} steps, {sum(item.cached for item in planned)} cached, "
                     f"in {runs.folder(prepared.workspace, prepared.run.name)}")
    if problems := shortage(prepared.run.config, prepared.workspace, planned, prepared.run.steps):
        raise UserError(*problems)
    with runs.hold(prepared.workspace, prepared.run.name):
        record = replace(prepared.run, steps=[{**step, "state": "cached" if item.cached else "waiting",
                                                "key": item.key or step["key"]}  # the old one until a new one is known
                                              for step, item in zip(prepared.run.steps, planned, strict=True)])
        reachable = gates.reachable(planned)
        if all(item.cached for item in reachable):
            return _all_cached(prepared, record, reachable, started)
        runs.save(prepared.workspace, record)
    return _drive(prepared, only=None, force=False)


def show_plan(overrides: list[str]) -> int:
    """Print the steps, what is cached, what must run, and an estimate. Writes nothing but file hashes."""
    prepared = prepare(overrides)
    planned = plan.look_up_all(prepared.workspace, prepared.steps)
    _say_notes(prepared, planned)
    rows = []
    for item in planned:
        state = "cached" if item.cached else "run" if item.key or not item.step.inputs else "run, after its inputs"
        origin = item.artifact.manifest.get("run", "") if item.artifact else ""
        inputs = ", ".join(str(ref) for refs in item.step.inputs.values() for ref in refs)
        rows.append([item.step.name, item.step.stage, state, item.key or "", origin, inputs])
    screen.table(f"run {prepared.run.name} in {prepared.workspace}",
                 ["step", "stage", "state", "key", "made by", "inputs"], rows, spare=("key", "inputs"))
    if lines := trainings.rows(prepared.workspace, planned):
        screen.table("", trainings.COLUMNS, lines)
    lines, ways = memory.rows(prepared.run.config, prepared.steps)
    if lines:
        screen.table("", memory.COLUMNS, lines)
    for way in ways:
        screen.paragraph(way)
    screen.paragraph(str(estimate(prepared.run.config, planned, prepared.run.steps)))
    for problem in shortage(prepared.run.config, prepared.workspace, planned, prepared.run.steps):
        screen.say(f"warning: {problem}")
    return 0


def run_stage(step: str, overrides: list[str], force: bool) -> int:
    """Rerun one step of an existing run, with changed settings if given; say what became stale by it."""
    fixed = [o for o in overrides if o.partition("=")[0] in ("run", "workspace")]
    changes = [o for o in overrides if o not in fixed]
    if not any(o.startswith("run=") for o in fixed):
        raise UserError("run: missing, say of which run: align stage STEP run=NAME")
    prepared = prepare(fixed, {step: changes} if changes else None)
    names = [s.name for s in prepared.steps]
    if step not in names:
        raise UserError(f"{step}: the run has no such step{nearest(step, names)}")
    planned = {item.step.name: item for item in plan.look_up_all(prepared.workspace, prepared.steps)}
    if planned[step].cached and not force:
        screen.say(f"{step} is there already with these settings ({planned[step].key}); --force computes it again")
    with runs.hold(prepared.workspace, prepared.run.name):
        runs.save(prepared.workspace, prepared.run)
    code = _drive(prepared, only=step, force=force)
    after = plan.look_up_all(prepared.workspace, prepared.steps)
    stale = [item.step.name for item in after if not item.cached]
    record = runs.load(prepared.workspace, prepared.run.name)
    if record is not None and code == 0:
        steps = [{**s, "state": "stale"} if s["name"] in stale else s for s in record.steps]
        runs.save(prepared.workspace, replace(record, steps=steps, outcome=runs.STALE if stale else runs.DONE))
        if stale:
            screen.say(f"stale now: {', '.join(stale)}\nbring them up to date with:"
                       f"{command(prepared.workspace, 'run', f'run={record.name}')}")
    return code


def _say_notes(prepared: CheckedRun, planned: list[Planned]) -> None:
    own = [*prepared.notes, *trainings.notes(prepared.workspace, planned)]
    for line in [*(f"note: {note}" for note in own), *data_read.notes(prepared.workspace, planned)]:
        screen.paragraph(line)


def _all_cached(prepared: CheckedRun, record: runs.Run, planned: list[Planned], started: float) -> int:
    """Nothing to run: no process, no Prefect."""
    width = max(len(item.step.name) for item in planned)
    for item in planned:
        if item.artifact is not None:
            progress.say_finished("cached", item.step.name.ljust(width), "", item.artifact)
        store.tidy(prepared.workspace, item.step.stage, item.key or "")
        runs.event(prepared.workspace, record.name, item.step.name, "cached", key=item.key)
    record = replace(record, steps=[{**s, "state": "cached"} for s in record.steps])
    record = gates.ended(record, planned[-1].step.name if len(planned) < len(record.steps) else "")
    runs.save(prepared.workspace, record)
    done = {item.step.name: item.artifact for item in planned if item.artifact}
    conclude(prepared.workspace, record, done, time.monotonic() - started)
    return 0


def _drive(prepared: CheckedRun, only: str | None, force: bool) -> int:
    """The flow in a process of its own, under a supervisor that leaves nothing behind."""
    if not launching.of(prepared.run.config).elsewhere:
        cuda.require(prepared.run.config)
    driver = [sys.executable, "-m", "flows.driver", str(prepared.workspace), prepared.run.name, only or ""]
    grace = float(prepared.run.config["hardware"]["grace_seconds"]) + 15  # the stage's own grace comes first
    asked = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    unheard = signal.pthread_sigmask(signal.SIG_BLOCK, asked)  # the supervisor's too, until it can answer one
    watched = supervisor.command_line(driver + (["--force"] if force else []), log=None, grace=grace,
                                      spare=waiting.folder(prepared.workspace))
    process = subprocess.Popen(watched, env={**os.environ, **supervisor.imports()}, start_new_session=True)
    received: list[int] = []

    def stop(number: int, _frame: object) -> None:
        process.send_signal(number)
        if not received:
            with contextlib.suppress(OSError):  # of a terminal that was closed; a print may be what was interrupted
                os.write(2, f"\nstopping, at most {grace:.0f} s\n".encode())
        received.append(number)

    for number in asked:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup
            signal.signal(number, stop)
    signal.pthread_sigmask(signal.SIG_SETMASK, unheard)
    watcher.start(prepared.workspace, prepared.run, process.pid)
    code = process.wait()
    record = runs.load(prepared.workspace, prepared.run.name)
    if record is not None and runs.outcome(prepared.workspace, record) == runs.INTERRUPTED:
        with contextlib.suppress(OSError):  # nobody holds its lock, which says the same
            runs.save(prepared.workspace, replace(record, outcome=runs.INTERRUPTED))
    go_on = f"go on with:{command(prepared.workspace, 'run', f'run={prepared.run.name}')}"
    if code in (130, 143):
        by = signal.Signals(received[0]).name if received else "align stop, or a signal to its process"
        by = by.replace("SIGINT", "Ctrl-C")
        screen.paragraph(f"interrupted by {by}; every finished step, part and checkpoint is kept, {go_on}")
        return code
    if code in (0, 1, 2):
        return code
    killed_by = -code if code < 0 else code - 128
    known = killed_by in set(signal.Signals)
    how = f"was killed by {signal.Signals(killed_by).name}" if known else f"ended with code {code}"
    screen.problems([f"the run's process {how}: memory ran out, or somebody ended it; every finished step, part and "
                     f"checkpoint is kept, {go_on}"])
    return 1
