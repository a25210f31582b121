"""The process that drives one run: `python -m flows.driver WORKSPACE RUN`, started by `align run` under a supervisor.

The steps come from run.json as it was resolved; what is computed and what is cached are decided here, by the files in
the store, and which steps go on at the same time by flows/schedule.py. Observers are told.
"""

import errno
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows import attempts, gates, going_on, launching, machine, machine_log, schedule, screen
from flows.engine_service import EngineFailed, EngineHolder
from flows.estimate import disk_needed, measured, step_needed
from flows.failures import InputDamaged, StepFailed
from flows.forecast import Forecast
from flows.going import Crew, End, Going
from flows.observer import Observer
from flows.prefect_side import PrefectPage
from flows.progress import Screen
from flows.step import Launch, around, ensure
from flows.summary import conclude
from flows.warm import Warm
from pipeline import files, plan, runs, store, tracking
from pipeline.config import build
from pipeline.errors import UserError, command
from pipeline.plan import Step

_RECORD = 1e5  # bytes of what is written beside a step's files


class DiskFull(Exception):
    """Something could not be written; the text says how to go on."""


class Driver:
    """Walks a run's steps and keeps its record. One object per process."""

    def __init__(self, workspace: Path, run: runs.Run, steps: list[Step], only: str | None = None, force: bool = False,
                 observers: tuple[Observer, ...] = ()) -> None:
        self.workspace, self.run, self.steps, self.only, self.force = workspace, run, steps, only, force
        self.done: dict[str, store.Artifact] = {}
        hardware = run.config["hardware"]
        # CUDA stays out of it: what a library asks of it on import is lost to a fork.
        on = hardware.get("warm_workers") is not False  # records of older code do not say it
        place = launching.of(run.config)
        warm = on and not machine.on_cuda(str(hardware["training"]["device"])) and not place.elsewhere
        self.room = schedule.room(hardware)
        self.launch = Launch(workspace, run.name, hardware["grace_seconds"], 60 * hardware["timeout_minutes"],
                             Warm(runs.folder(workspace, run.name) / "logs" / "warm.log") if warm else None,
                             apart=self.room.jobs > 1, place=place)
        self.engine = EngineHolder(self.launch.folder / "logs" / "engine.log", run.config["engine"], workspace,
                                   place.elsewhere)
        self.observers = observers
        self.stopped_by = ""  # the gate that ended the run, "" where none did
        self._devices = 0 if place.elsewhere else self.room.devices  # a cluster deals out its own
        self._engine_devices, self._crew = schedule.engine_devices(run.config["engine"]), Crew()
        self._looked_up: dict[str, plan.Planned] = {}

    def walk(self) -> None:
        """Every wanted step, up to a gate that stops the run. How it ended is recorded, whatever happens."""
        well = False
        try:
            self._all()
            self.run, well = gates.ended(self.run, self.stopped_by), True
        except BaseException as error:
            self.engine.give_up()
            self._crew.halt()
            self.run = _broken(self.run, error)
            if fault := files.disk_fault(error):
                raise DiskFull(self._why(fault)) from None
            raise
        finally:
            try:
                runs.save(self.workspace, self.run)
            except OSError as error:
                raise DiskFull(self._why(files.disk_fault(error) or errno.EIO)) from None
            finally:
                self.engine.close(well)
                if self.launch.warm is not None:
                    self.launch.warm.close()
                self.tell(lambda observer: observer.ended(self.run.outcome))

    def _all(self) -> None:
        """Start what can be started and hear how it ends, until nothing is left. After a failure nothing more is
        started, and what goes on comes to its end (docs/decisions/026). Raises the first failure.
        """
        waits, failures = schedule.after(self.wanted()), list[BaseException]()
        while True:
            while not failures and (step := self._next(waits)) is not None:
                try:
                    self._begin(step)
                except Exception as error:
                    failures.append(error)
                    self._failed(step, failures)
            if not self._crew.going:
                break
            end = self._crew.hear(self._progress)
            try:
                self._ended(end)
            except Exception as error:
                failures.append(error)
                self._failed(end.going.step, failures)
        if failures:
            raise failures[0]

    def _next(self, waits: dict[str, frozenset[str]]) -> Step | None:
        names = list(waits)
        if self.stopped_by:  # what stands before the gate is run
            names = names[: names.index(self.stopped_by)]
        held = {name: one.need for name, one in self._crew.going.items()}
        name = schedule.following({name: waits[name] for name in names}, self.done.keys(), held, self._need, self.room)
        return next((step for step in self.steps if step.name == name), None)

    def _need(self, name: str) -> schedule.Need:
        """Nothing where it is cached. One that is always alone is not even looked up."""
        if self.room.jobs == 1:
            return schedule.Need()
        step = next(step for step in self.steps if step.name == name)
        if name not in self._looked_up:
            try:
                self._looked_up[name] = plan.look_up(self.workspace, step, self.done)
            except (UserError, OSError):  # it is begun, which says why it cannot be
                return schedule.Need()
        there = self._looked_up[name].cached and not self._forced(step)
        return schedule.Need() if there else schedule.need(step, self._engine_devices, self._devices)

    def _forced(self, step: Step) -> bool:
        return self.force and step.name == self.only

    def _begin(self, step: Step) -> None:
        """Make sure that the step's artifact is there or on its way; update the record either way."""
        started = time.monotonic()
        self.tell(lambda observer: observer.started(step))
        item = self._looked_up.pop(step.name, None) or plan.look_up(self.workspace, step, self.done)
        need = schedule.need(step, self._engine_devices, self._devices)
        if item.artifact is not None and not self._forced(step):
            self._ended(End(Going(step, need, (), started), item.artifact, cached=True))
            return
        if self.only not in (None, step.name):
            raise UserError(f"{self.only}: {step.name} must run first; run it with:"
                            f"{command(self.workspace, 'run', f'run={self.run.name}')}")
        self._mark(step, state="running", key=item.key)
        begun = {step.name, *self.done, *self._crew.going}
        left = [step, *(one for one in self.steps if one.name not in begun and not self.only)]
        self.engine.warm_up(left, self.done)
        if self.launch.warm is not None and len(left) > 1:
            self.launch.warm.start((one.stage for one in left), around())
        taken = {device for one in self._crew.going.values() for device in one.devices}
        going = Going(step, need, schedule.devices(need, self.room, taken), started)
        self._crew.start(going, lambda: self._ensure(item, going))

    def _ended(self, end: End) -> None:
        """Update the record. Raises the step's error where it has one."""
        step, artifact, seconds = end.going.step, end.artifact, time.monotonic() - end.going.started
        if artifact is None:
            assert end.error is not None
            raise end.error
        self.done[step.name] = artifact
        if end.cached:
            store.tidy(self.workspace, step.stage, artifact.key)
            runs.event(self.workspace, self.run.name, step.name, "cached", key=artifact.key)
            self._mark(step, state="cached", key=artifact.key)
        else:
            self._mark(step, state="done", key=artifact.key, seconds=round(seconds, 3))
        self.tell(lambda observer: observer.finished(step.name, artifact, end.cached, seconds))
        self._gate(step, artifact)

    def _failed(self, step: Step, failures: list[BaseException]) -> None:
        """Where others still go on: say so. The first failure is told by what the run ends with, others now."""
        self.run = _broken(self.run, failures[-1], step.name)
        if len(failures) > 1:
            screen.problems([str(failures[-1])])
        elif others := list(self._crew.going):
            runs.save(self.workspace, self.run)
            screen.paragraph(f"note: {step.name} failed, nothing more is started; {', '.join(others)} "
                             f"{'goes' if len(others) == 1 else 'go'} on to the end and will be kept; Ctrl-C stops "
                             f"{'it' if len(others) == 1 else 'them'} at the last checkpoint or part")

    def _ensure(self, item: plan.Planned, going: Going) -> tuple[store.Artifact, bool]:
        """In the step's thread: from its first try to its artifact."""
        step = item.step
        seconds, retries = attempts.of(self.run.config["hardware"], step.stage)
        launch, rests = replace(self.launch, timeout=seconds), self.room.jobs == 1 or going.need.devices > 0

        def attempt() -> tuple[store.Artifact, bool]:
            environment = {**schedule.seeing(going.devices), **self.engine.environment(step, rests)}
            return ensure(launch, item, self.done, environment, self._crew.watch, self._forced(step))

        return attempts.tried(attempt, retries, lambda: self.engine.lost(step), lambda why: self._crew.say(
            lambda: self.tell(lambda observer: observer.again(step.name, why))))

    def _gate(self, step: Step, artifact: store.Artifact) -> None:
        """Obey a gate; its artifact is the decision, so a run that goes on decides the same."""
        if (decision := gates.read(artifact)) is not None:
            lines = gates.lines(step.name, decision)
            self.tell(lambda observer: observer.gate(lines))
            if decision["decision"] == gates.STOP and not self.only:
                self.stopped_by = step.name

    def wanted(self) -> list[Step]:
        """The steps to run: all, or all up to the one that was asked for."""
        return self.steps[: 1 + [s.name for s in self.steps].index(self.only)] if self.only else self.steps

    def tell(self, event: Callable[[Observer], None]) -> None:
        """Tell every observer in turn. One that raises costs a line and is told nothing more; the run goes on."""
        for observer in self.observers:
            try:
                event(observer)
            except Exception as error:
                self.observers = tuple(other for other in self.observers if other is not observer)
                screen.say(f"note: {type(observer).__name__} failed and is left out ({error!r}); the run goes on")

    def _why(self, fault: int) -> str:
        """What is wrong with the disk, and how to go on. fault: an errno."""
        if fault != errno.ENOSPC:
            return (f"the disk of {self.workspace}, or of what the step reads, fails ({os.strerror(fault)}); what is "
                    f"finished is kept; once it can be used, go on with:"
                    f"{command(self.workspace, 'run', f'run={self.run.name}')}")
        planned, free = plan.look_up_all(self.workspace, self.steps), shutil.disk_usage(self.workspace).free
        needed = disk_needed(self.run.config, self.workspace, planned, self.run.steps)
        failed = {step["name"] for step in self.run.steps if step["state"] == runs.FAILED}
        cut = [item for item in planned if not item.cached and item.step.name in failed]
        own = max([_RECORD, *(step_needed(self.run.config, self.workspace, planned, item, self.done) for item in cut)])
        what, quota = cut[0].step.name if cut else "the run's record", ", or your quota of it" if free > own else ""
        return (f"the disk of {self.workspace} is full{quota}: {screen.size(free)} free; {what} was being written and "
                f"may need {screen.size(own)} more, all steps still to run about {screen.size(max(own, needed))}; make "
                f"room, this removes what no run needs:{command(self.workspace, 'gc', '--apply')}\n"
                f"then go on with:{command(self.workspace, 'run', f'run={self.run.name}')}")

    def _progress(self, step: str, state: dict[str, Any] | None) -> None:
        self.tell(lambda observer: observer.progress(step, state))

    def _mark(self, step: Step, **facts: Any) -> None:
        self.run = runs.update_step(self.workspace, self.run, step.name, **facts)


def _broken(run: runs.Run, error: BaseException, step: str | None = None) -> runs.Run:
    """The record of a run that did not come to its end; step: of one that ended so while others go on."""
    state = runs.INTERRUPTED if isinstance(error, (KeyboardInterrupt, SystemExit)) else runs.FAILED
    steps = [{**s, "state": state} if s["state"] == "running" and step in (None, s["name"]) else s for s in run.steps]
    return replace(run, outcome=state if step is None else run.outcome, steps=steps)


def main(workspace: Path, name: str, only: str | None, force: bool) -> int:
    """Exit code of the run: 0 done, 1 a stage failed, 2 the user's input is wrong, 143 stopped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that observers are told of the end
    started, begun = time.monotonic(), False
    try:
        with runs.hold(workspace, name):
            run = runs.load(workspace, name)
            assert run is not None
            steps = plan.steps_of(run)
            mirror = build(tracking.Settings, run.config["tracking"], "tracking")
            waiting = {s["name"]: s["stage"] for s in run.steps if s["state"] != "cached"}
            together = schedule.together(run.config, steps)
            expected = Forecast(waiting, measured(workspace), together=together) if only is None else None
            observers = (Screen([step.name for step in steps], expected), PrefectPage(workspace, name))
            driver = Driver(workspace, run, steps, only, force, observers)
            place = runs.folder(workspace, name)
            with machine_log.sampled(place), tracking.mirrored(mirror, place, screen.say):
                begun = True
                driver.walk()
            if only is None:
                conclude(workspace, driver.run, driver.done, time.monotonic() - started)
    except UserError as error:
        screen.problems(error.problems)
        if begun:
            screen.errors.print(going_on.after_a_mistake(workspace, name), markup=False)
        return 2
    except (StepFailed, EngineFailed) as error:
        screen.problems([str(error)])
        log = "engine" if isinstance(error, EngineFailed) else ""
        screen.errors.print(going_on.after_a_failure(workspace, name, log), markup=False)
        return 1
    except (InputDamaged, DiskFull) as error:
        screen.problems([str(error)])
        return 1
    except OSError as error:
        if not files.disk_fault(error):
            raise
        screen.problems([f"{error.filename or workspace}: {error.strerror}; once it can be written, go on with: align "
                         f"run run={name}"])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3] or None, "--force" in sys.argv))
