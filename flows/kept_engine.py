"""The engine that waits in a workspace for its next run: taking one up, leaving one, ending one."""

import contextlib
from pathlib import Path
from typing import Any

from flows import screen
from pipeline import files, waiting
from pipeline.config import Part
from pipeline.engines.engine import Backend
from pipeline.errors import UserError, command

_END = ("stop", "--engine")


class KeptEngine:
    """A run's part in it. While it holds the workspace's lock, what it has started or taken up serves it alone."""

    def __init__(self, part: Part[Backend], workspace: Path, log: Path) -> None:
        self._part, self._workspace, self._log, self._place = part, workspace, log, waiting.folder(workspace)
        self._held: contextlib.ExitStack | None = None
        self._record: dict[str, Any] = {}  # of what may wait
        self.resumed = False  # what `begin` gave last is of an earlier run

    def begin(self, model: Path) -> Any:
        """The service of this run: the one that waits, where it will do, else a new one; None where the user's own
        server serves. Whatever waits and will not do has ended behind this.
        """
        plugin, settings = self._part.plugin, self._part.settings
        assert plugin.start_service is not None
        self.resumed, seconds = False, plugin.keeping.seconds(settings) if plugin.keeping else 0.0
        if self._held is None and (seconds or waiting.read(self._place)):
            self._held = waiting.claim(self._place)
            if self._held is None:
                self._note("another run, or user, has the engine of this workspace; this one starts its own")
            elif (service := self._resume(model)) is not None:
                return service
        if self._held is None or plugin.keeping is None or not seconds:
            self.give_up()
            return plugin.start_service(model, self._log, settings)
        service = plugin.keeping.start(model, self._log, settings, self._place)
        self._record = plugin.keeping.record(service, model, settings)
        return service

    def _resume(self, model: Path) -> Any:
        keeping, found = self._part.plugin.keeping, waiting.take(self._place)
        if found is None:
            return None
        try:
            if keeping is None:
                raise waiting.Unusable("this run needs another one")
            service = keeping.resume(found, model, self._log, self._part.settings, self._place)
        except waiting.Unusable as error:
            self._note(f"the engine that waited for this run is not used ({error}); it starts one cold")
            waiting.stop(waiting.keepers(self._place, found))
            return None
        self._note(f"the engine of an earlier run goes on; its log: {found['log']}")
        self._record, self.resumed = found, True
        return service

    def clear(self) -> None:
        """End one that waits, for a run whose steps sample by themselves: they need its memory."""
        if waiting.read(self._place) is not None and waiting.clear(self._place):
            self._note("the engine that waited is ended: this run takes another one")

    def leave(self, service: Any, awake: bool) -> bool:
        """Let it wait, without the device's memory where others need that; whether it does. It never fails a run."""
        plugin, settings = self._part.plugin, self._part.settings
        seconds = plugin.keeping.seconds(settings) if plugin.keeping and service.alive() else 0.0
        if self._held is None or not seconds:
            return False
        try:
            if awake:
                service.rest()
            waiting.leave(self._place, {**self._record, "seconds": seconds})
        except (OSError, RuntimeError) as error:
            self._note(f"the engine cannot wait for the next run ({error}); it ends")
            return False
        screen.say(f"the engine stays for {seconds:g} s, end it with:{command(self._workspace, *_END)}")
        return True

    def give_up(self) -> None:
        """The lock, behind which a service ends that was not left."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def _note(self, text: str) -> None:
        screen.paragraph(f"note: {text}")
        with contextlib.suppress(OSError):
            self._log.parent.mkdir(parents=True, exist_ok=True)
            files.append_line(self._log, text)


def tell(workspace: Path) -> None:
    """Say that one waits, where one does."""
    place = waiting.folder(workspace)
    found = waiting.read(place)
    if found is not None and all(keeper.poll() is None for keeper in waiting.keepers(place, found)):
        screen.say(f"\nan engine waits for the next run, {found['seconds']:g} s from the end of the last; end it with:"
                   f"{command(workspace, *_END)}")


def stop(workspace: Path) -> int:
    """End the engine that waits. Exit code."""
    place = waiting.folder(workspace)
    ended = waiting.clear(place) if place.exists() else False
    if ended is None:
        raise UserError(f"a run uses the engine, and ends it: stop that run; it is going on in:"
                        f"{command(workspace, 'status')}")
    screen.say("the engine has ended" if ended else "no engine waits")
    return 0
