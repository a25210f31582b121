"""The process that drives one run: `python -m flows.driver WORKSPACE RUN`, started by `align run` under a supervisor.

One Prefect flow per run, one task per step: order, logs, its UI. Prefect never decides what is done; files do.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows import gates, prefect_page, screen
from flows.compose import compose
from flows.engine_service import EngineFailed, EngineHolder
from flows.environment import prefect_environment
from flows.prepare import expand
from flows.server import running_url
from flows.step import Place, StepFailed, finish
from flows.summary import conclude
from pipeline import plan, runs, store, tracking
from pipeline.config import build
from pipeline.errors import UserError
from pipeline.plan import Step


class Driver:
    """Walks a run's steps in order and keeps its record. One object per process."""

    def __init__(self, workspace: Path, run: runs.Run, steps: list[Step], only: str | None, force: bool) -> None:
        self.workspace, self.run, self.steps, self.only, self.force = workspace, run, steps, only, force
        self.done: dict[str, store.Artifact] = {}
        hardware = run.config["hardware"]
        self.place = Place(workspace, run.name, hardware["grace_seconds"], 60 * hardware["timeout_minutes"])
        self.engine = EngineHolder(self.place.folder / "logs" / "engine.log", run.config["engine"], workspace)
        self.screen = screen.Screen(len(steps))
        self.stopped_by = ""  # the gate that ended the run, "" where none did

    def step(self, step: Step) -> None:
        """Make sure the step's artifact is there; update the record either way."""
        started = time.monotonic()
        self.screen.start(step.name)
        item = plan.look_up(self.workspace, step, self.done)
        force = self.force and step.name == self.only
        if item.artifact is not None and not force:
            artifact, cached = item.artifact, True
        elif self.only not in (None, step.name):
            raise UserError(f"{self.only}: {step.name} must run first; run it with: align run run={self.run.name}")
        else:
            self._mark(step, state="running", key=item.key)
            self.engine.warm_up(self._remaining(step), self.done)
            environment = self.engine.environment(step)
            artifact, cached = finish(self.place, item, self.done, environment, self.screen.watch, force)
        self.done[step.name] = artifact
        seconds = time.monotonic() - started
        facts: dict[str, Any] = {"state": "cached" if cached else "done", "key": artifact.key}
        if not cached:
            facts["seconds"] = round(seconds, 3)
        else:
            runs.event(self.workspace, self.run.name, step.name, "cached", key=artifact.key)
        self._mark(step, **facts)
        self.screen.finish(step.name, cached, seconds, screen.brief(artifact.manifest["counts"]))
        self._gate(step, artifact)

    def _gate(self, step: Step, artifact: store.Artifact) -> None:
        """Say what a gate decided; the artifact is the decision, so a run that goes on decides the same."""
        decision = gates.read(artifact)
        if decision is None:
            return
        for line in gates.lines(step.name, decision):
            screen.say(line)
        if decision["decision"] == gates.STOP and not self.only:
            self.stopped_by = step.name

    def wanted(self) -> list[Step]:
        """The steps to run: all, or all up to the one that was asked for."""
        return self.steps[: 1 + [s.name for s in self.steps].index(self.only)] if self.only else self.steps

    def _remaining(self, step: Step) -> list[Step]:
        position = self.steps.index(step)
        return [step] if self.only else self.steps[position:]

    def _mark(self, step: Step, **facts: Any) -> None:
        self.run = runs.update_step(self.workspace, self.run, step.name, **facts)

    def fail(self, error: BaseException) -> None:
        """Record how it ended. The running step is the one to blame."""
        interrupted = isinstance(error, (KeyboardInterrupt, SystemExit))
        state = runs.INTERRUPTED if interrupted else runs.FAILED
        steps = [{**s, "state": state} if s["state"] == "running" else s for s in self.run.steps]
        self.run = replace(self.run, steps=steps, outcome=state)
        runs.save(self.workspace, self.run)


def _start_prefect() -> None:
    """Import Prefect and, where no server is configured, start its local one: 6 to 13 s that need not be waited for."""
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import get_current_settings

    if not get_current_settings().api.url:
        try:
            SubprocessASGIServer().start()
        except Exception as error:  # the flow will say so again; the steps do not need it
            screen.say(f"note: Prefect's server did not start ({error})")


def drive(driver: Driver) -> None:
    """All steps as tasks of one Prefect flow. Called directly, so they run in order in this thread.

    The first steps run while Prefect starts; their tasks then find them done.
    """
    prefect = threading.Thread(target=_start_prefect, daemon=True)
    prefect.start()
    for step in driver.wanted():
        if prefect.is_alive() and not driver.stopped_by:
            driver.step(step)
    prefect.join()
    _as_flow(driver, driver.wanted())


def _as_flow(driver: Driver, wanted: list[Step]) -> None:
    from prefect import flow, get_run_logger, task
    from prefect.cache_policies import NO_CACHE

    def one_step(name: str) -> None:
        with prefect_page.progress(driver, name):
            if name not in driver.done:
                driver.step(next(s for s in driver.steps if s.name == name))
        prefect_page.link(driver, name)
        get_run_logger().info("%s: %s", name, screen.brief(driver.done[name].manifest["counts"]))

    @flow(name="alignloop", flow_run_name=driver.run.name, validate_parameters=False)
    def loop(steps: list[str]) -> None:
        if page := prefect_page.address():
            screen.say(f"page      {page}")
        for name in steps:
            if driver.stopped_by and name not in driver.done:
                break
            as_task = task(name=name, task_run_name=name, cache_policy=NO_CACHE, persist_result=False)
            as_task(one_step)(name)

    try:
        loop([s.name for s in wanted])
    except (UserError, StepFailed, EngineFailed):
        raise
    except Exception as error:  # Prefect's server may go away after the last step: the files know better
        if len(driver.done) < len(wanted) and not driver.stopped_by:
            raise
        screen.say(f"note: Prefect ended with {type(error).__name__}; every step is done, so the result stands")


def main(workspace: Path, name: str, only: str | None, force: bool) -> int:
    """Exit code of the run: 0 done, 1 a stage failed, 2 the user's input is wrong, 143 stopped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # without it Prefect leaves its server behind
    started = time.monotonic()
    try:
        with runs.hold(workspace, name):
            run = runs.load(workspace, name)
            assert run is not None
            composed = compose(run.overrides)
            driver = Driver(workspace, run, expand(composed, run.overrides, run.step_overrides), only, force)
            _run(driver)
            if only is None:
                conclude(workspace, driver.run, driver.done, time.monotonic() - started)
    except UserError as error:
        screen.problems(error.problems)
        return 2
    except (StepFailed, EngineFailed) as error:
        screen.problems([str(error)])
        return 1
    return 0


def _run(driver: Driver) -> None:
    """Drive to the end and record how it ended, whatever happens."""
    mirror = build(tracking.Settings, driver.run.config["tracking"], "tracking")
    with tracking.mirrored(mirror, driver.place.folder, screen.say), driver.screen:
        try:
            drive(driver)
        except BaseException as error:
            driver.fail(error)
            raise
        finally:
            driver.engine.close()
    driver.run = gates.ended(driver.run, driver.stopped_by)
    runs.save(driver.workspace, driver.run)


if __name__ == "__main__":
    for variable, value in prefect_environment(Path(sys.argv[1])).items():
        os.environ.setdefault(variable, value)
    if "PREFECT_API_URL" not in os.environ and (url := running_url(Path(sys.argv[1]))):
        os.environ["PREFECT_API_URL"] = url
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3] or None, "--force" in sys.argv))
