"""What Prefect's page shows of a run beside its tasks: progress while a stage runs, and a link to what it left.

Prefect is a guest here: whatever goes wrong with its artifacts costs a remark, never the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from flows.dashboard import PORT
from pipeline import runs, web

if TYPE_CHECKING:
    from flows.driver import Driver

_EVERY = 2.0  # seconds between two updates of a progress artifact
_DASHBOARD = "ALIGNLOOP_DASHBOARD"  # where the dashboard is, if not at its usual address on this machine


def watched() -> bool:
    """Whether this run reports to a Prefect server that stays up. A run's own temporary server ends with it."""
    return bool(os.environ.get("PREFECT_API_URL"))


def address() -> str:
    """Where the page shows the flow that is running, "" where nobody looks or Prefect does not know."""
    if not watched():
        return ""
    try:
        from prefect.runtime import flow_run
        from prefect.utilities.urls import url_for  # runtime's own ui_url still names a route of Prefect 2

        return str(url_for("flow-run", obj_id=flow_run.id) or "") if flow_run.id else ""
    except Exception:  # whatever its client raises: the files are the record
        return ""


def dashboard(workspace: Path) -> str:
    """Where a dashboard shows this workspace, "" where none is known.

    What ALIGNLOOP_DASHBOARD says (as printed by `align dashboard`, token included), else the usual address on this
    machine if a dashboard of this very workspace answers there.
    """
    if given := os.environ.get(_DASHBOARD):
        return given if "?" in given else given.rstrip("/") + "/"
    usual = f"http://localhost:{PORT}/"
    try:
        return usual if json.loads(web.fetch(f"{usual}api/runs", 1)[1])["workspace"] == str(workspace) else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def key(run: str, step: str) -> str:
    """A key Prefect accepts (lower-case letters, digits, dashes), one per run and step."""
    return re.sub(r"[^a-z0-9]+", "-", f"{run}-{step}".lower()).strip("-")


@contextlib.contextmanager
def progress(driver: Driver, name: str) -> Iterator[None]:
    """A progress artifact of the task while the body runs, fed by what the screen is shown."""
    if not watched():
        yield
        return
    shown = _Progress(key(driver.run.name, name), name, name in driver.done)
    watch = driver.screen.watch
    driver.screen.watch = shown.beside(watch)  # type: ignore[method-assign]
    try:
        yield
        shown.finish()
    finally:
        driver.screen.watch = watch  # type: ignore[method-assign]


class _Progress:
    """One progress artifact; silent for good after its first failure."""

    def __init__(self, key: str, step: str, finished: bool) -> None:
        self._last, self._id = 0.0, None
        self._broken = False
        self._try(lambda prefect: self._create(prefect, key, step, 100.0 if finished else 0.0))

    def _create(self, prefect: Any, key: str, step: str, share: float) -> None:
        self._id = prefect.create_progress_artifact(progress=share, key=f"{key}-progress", description=step)

    def beside(self, watch: Any) -> Any:
        def both(step: str, state: dict[str, Any] | None) -> None:
            watch(step, state)
            if state and state.get("total") and time.monotonic() - self._last > _EVERY:
                self._set(100 * min(1.0, state["done"] / state["total"]))

        return both

    def finish(self) -> None:
        self._set(100.0)

    def _set(self, share: float) -> None:
        self._last = time.monotonic()
        if self._id is not None:
            self._try(lambda prefect: prefect.update_progress_artifact(self._id, progress=share))

    def _try(self, act: Any) -> None:
        if not self._broken:
            self._broken = not _quietly(act)


def link(driver: Driver, name: str) -> None:
    """Link artifacts to the folder the step left and to the dashboard's page of it, and a table of its counts."""
    if not watched():
        return
    artifact, own = driver.done[name], key(driver.run.name, name)
    counts = [{"what": what, "number": number} for what, number in artifact.manifest["counts"].items()]
    folder, page = runs.folder(driver.workspace, driver.run.name), dashboard(driver.workspace)

    def make(prefect: Any) -> None:
        prefect.create_link_artifact(link=artifact.path.as_uri(), link_text=f"{artifact.kind}/{artifact.key}",
                                     key=f"{own}-artifact", description=f"{name}: its artifact; the run is in {folder}")
        if page:
            place = f"{page}#/run/{quote(driver.run.name)}?{urlencode({'step': name})}"
            prefect.create_link_artifact(link=place, link_text=f"{driver.run.name}: {name}", key=f"{own}-page",
                                         description=f"{name} on the dashboard")
        if counts:
            prefect.create_table_artifact(table=counts, key=f"{own}-counts", description=name)

    _quietly(make)


def _quietly(act: Any) -> bool:
    """Run `act(prefect.artifacts)`; False where Prefect would not have it."""
    try:
        from prefect import artifacts

        act(artifacts)
    except Exception:  # whatever its client raises: the files are the record
        return False
    return True
