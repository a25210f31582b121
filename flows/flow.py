"""A run as a flow of Prefect's: what `align deploy` deploys, and what other flows may import.

    from flows.flow import align
    align(recipe="pco", overrides=["model=path", "model.path=/models/llama"], run="first", workspace="/data/runs")

The files of the workspace decide what is done: called twice it computes nothing twice, called again after a failure, a
kill or a cancel it goes on. Its steps are task runs of the flow run: the run's own process tells (prefect_side.py).
"""

import os
import subprocess
import sys
from typing import Any

from prefect import flow, get_run_logger, runtime
from prefect.states import Cancelled, Failed

from flows.prefect_side import FLOW_RUN
from pipeline import supervisor

_GRACE = 120.0  # seconds for the run to stop; its own settings end it sooner
_SHOWN = 40  # lines of a message


def words(recipe: str | None, overrides: list[str], run: str | None, workspace: str) -> list[str]:
    """Those of `align run`."""
    named = {"recipe": recipe, "run": run, "workspace": workspace}
    return [*(f"{key}={value}" for key, value in named.items() if value is not None), *overrides]


def _named() -> str:
    given = runtime.flow_run.parameters
    return str(given.get("run") or given.get("recipe") or "alignloop")


@flow(name="alignloop", flow_run_name=_named)
def align(recipe: str | None = None, overrides: list[str] | None = None, run: str | None = None,
          workspace: str = "workspace") -> Any:
    """Run, or go on: as `align run` with these words.

    recipe: of `align options recipe`; None: a run that there is goes on. overrides: `key=value`, `group=option`. run:
    its name; None: <recipe>-<data>. workspace: folder of every artifact and run, the same on all machines.

    Failed with what is wrong, in the words of `align plan`, where the words do not fit or a stage fails.
    """
    asked = words(recipe, overrides or [], run, workspace)
    code, said = _run(asked, {**os.environ, **supervisor.imports(), FLOW_RUN: str(runtime.flow_run.id)})
    if code == 0:
        return "done"
    wrong = [i for i, line in enumerate(said) if line.startswith("error: ")]
    text = "\n".join(said[wrong[0]:] if wrong else said[-_SHOWN:])
    if code in (130, 143):
        return Cancelled(message="the run was stopped; what is finished is kept, and the same parameters go on")
    return Failed(message=text)


def _run(asked: list[str], environment: dict[str, str]) -> tuple[int, list[str]]:
    """Exit code of `align run`, and what it printed, which is logged as it comes. It ends where this flow run does."""
    command = [sys.executable, "-P", "-m", "flows.cli", "run", *asked]
    process = subprocess.Popen(supervisor.command_line(command, log=None, grace=_GRACE), env=environment, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    said, logger = list[str](), get_run_logger()
    try:
        for line in process.stdout:
            said.append(line.rstrip())
            logger.info(line.rstrip())
        return process.wait(), said
    finally:  # Prefect has it cancelled, or ends
        process.terminate()
        process.wait()
