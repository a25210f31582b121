"""The sampling engine that outlives a stage: started once per run, early, used by every step that samples."""

import threading
from pathlib import Path
from typing import Any

from flows import screen
from flows.kept_engine import KeptEngine
from pipeline import store
from pipeline.config import load_part
from pipeline.engines.engine import Backend
from pipeline.plan import Step, look_up


class EngineFailed(Exception):
    """The engine's service did not start. Carries the last lines of its log."""


class EngineHolder:
    """Owns the run's engine service. It starts in the background as soon as a model exists whose shape it can take
    (weights are swapped in place later), so that its start overlaps training. Where training needs the engine's device
    (`engine.sleep_level` above 0) it starts with the first step that samples, and sleeps during the others. Where steps
    run elsewhere and could not reach a service of this machine, each that samples starts its own. One may wait for the
    next run (flows/kept_engine.py)."""

    def __init__(self, log: Path, spec: dict[str, Any], workspace: Path, elsewhere: bool = False) -> None:
        self._part = load_part(spec, "engine", Backend)
        self._out_of_reach = elsewhere and not self._part.plugin.reachable
        self._log = log
        self._workspace = workspace
        self._kept = KeptEngine(self._part, workspace, log)
        self._service: Any = None
        self._model: Path | None = None  # the folder the service was started with
        self._shares_device = self._part.of(self._part.plugin.shares_device)
        self._asleep = False
        self._waiting = threading.Lock()
        self._given_up = False  # the run ends: nothing is started any more
        self._taken = self._served = False  # the engine takes models of this family; it has served once

    def warm_up(self, remaining: list[Step], done: dict[str, store.Artifact]) -> None:
        """Start the service if a step to come will sample and nothing serves yet. Raises UserError for a model that it
        cannot serve, as soon as there is one: also where its start waits for the device.
        """
        if self._part.plugin.start_service is None and self._wanted(remaining, done):
            self._kept.clear()
        if self._model is not None or self._part.plugin.start_service is None or self._out_of_reach:
            return
        models = (a.path / "model" for a in done.values() if "model/generation_config.json" in a.manifest["files"])
        model = next(models, None)
        if model is None:
            return
        if self._shares_device and not self._taken and self._wanted(remaining, done):
            self._part.plugin.refuse_model(model, self._part.settings)
            self._taken = True
        if self._wanted(remaining[:1] if self._shares_device else remaining, done):
            self._model = model
            self._begin()

    def _wanted(self, ahead: list[Step], done: dict[str, store.Artifact]) -> bool:
        return any(step.plugin.samples and not look_up(self._workspace, step, done).cached for step in ahead)

    def _begin(self) -> None:
        """The service is None where the user's own server serves."""
        assert self._model is not None
        self._service = self._kept.begin(self._model)
        self._asleep = self._kept.resumed and self._shares_device

    def environment(self, step: Step, rests: bool = True) -> dict[str, str]:
        """What the step's process needs to use the service. Waits until it serves; starts it anew if it has died.

        rests: False for a step beside which another may sample. Steps that go on at the same time call it from threads.
        """
        serves = self._service is not None and self._service.alive()
        if self._service is None or (not step.plugin.samples and serves and not self._shares_device):
            return {}
        with self._waiting:
            return self._environment(step, rests)

    def _environment(self, step: Step, rests: bool) -> dict[str, str]:
        if not step.plugin.samples:
            self._look(step)
            if rests:
                self._rest()
            return {}
        if not self._service.alive():
            screen.say(f"note: the engine has ended ({self._log}); starting it again")
            self._service.stop()  # of several replicas, those that are left
            self._begin()
        try:
            self._wait_ready()
            self._served = True
            if self._asleep:
                self._service.wake()
                self._asleep = False
        except RuntimeError as error:
            raise EngineFailed(f"{step.name} cannot sample: {error}") from None
        return dict(self._service.environment)

    def _look(self, step: Step) -> None:
        """One that cannot start is told now, not when a training is over that takes hours."""
        if self._served or self._shares_device or self._service.alive():
            return
        try:
            self._wait_ready()
            self._served = True
        except RuntimeError as error:
            raise EngineFailed(f"before {step.name}: steps behind it cannot sample: {error}") from None

    def _wait_ready(self) -> None:
        """One that ends while it starts is started once more: it may have been killed, or its port been taken."""
        timeout = self._part.settings.start_timeout
        try:
            self._service.wait_ready(timeout)
        except RuntimeError as error:
            if self._service.alive() or self._given_up:
                raise
            screen.say(f"note: the engine ended while it started ({str(error).splitlines()[0]}); starting it once more")
            self._service.stop()
            self._begin()
            self._service.wait_ready(timeout)

    def lost(self, step: Step) -> bool:
        """Whether the step sampled with an engine that has ended for good, with its keeper."""
        return self._service is not None and step.plugin.samples and not self._service.alive()

    def _rest(self) -> None:
        if self._shares_device and not self._asleep and self._service.alive():
            try:
                self._service.rest()
            except RuntimeError as error:
                raise EngineFailed(f"the engine keeps the device's memory: {error}") from None
            self._asleep = True

    def give_up(self) -> None:
        """The run ends: a step that still waits for the engine, and so is the only one to sample, waits no longer."""
        self._given_up = True
        if self._service is not None and self._waiting.locked():
            self._service.stop()

    def close(self, well: bool = False) -> None:
        """well: the run came to its end, so that the engine may wait for the next one."""
        service, self._service = self._service, None
        awake = self._shares_device and not self._asleep
        if service is not None and not (well and self._served and self._kept.leave(service, awake)):
            service.stop()
        self._kept.give_up()
