"""`align deploy`: the words of a run as a deployment of Prefect's, for its button, a schedule, a worker elsewhere."""

import importlib.metadata
import os
from typing import Any

from flows import screen
from flows.prefect_side import environment, running_url
from flows.prepare import absolute, prepare
from pipeline.errors import UserError, command

_BROKEN = (2, 1)  # sqlalchemy, from which on the scheduler of Prefect 3.7.7 raises: see pyproject.toml


def deploy(words: list[str], name: str | None, pool: str, cron: str | None, timezone: str | None) -> int:
    """Register flows.flow.align with these words as its parameters. Raises UserError where no run could be made of
    them, or no server answers.
    """
    prepared = prepare(words)
    place = prepared.workspace
    for variable, value in environment(place).items():
        os.environ.setdefault(variable, value)
    if "PREFECT_API_URL" not in os.environ:
        url = running_url(place)
        if url is None:
            raise UserError(f"Prefect: no server runs for {place}; set PREFECT_API_URL, or start one:"
                            f"{command(place, 'server', 'up')}")
        os.environ["PREFECT_API_URL"] = url
    given = dict(word.partition("=")[::2] for word in map(absolute, words))
    own = {key: given.pop(key, None) for key in ("recipe", "run")} | {"workspace": str(place)}
    given.pop("workspace", None)
    parameters = {**own, "overrides": [f"{key}={value}" for key, value in given.items()]}
    label = name or prepared.run.name
    _register(label, pool, parameters, cron, timezone)
    held = importlib.metadata.version("sqlalchemy")
    if cron and tuple(map(int, held.split(".")[:2])) >= _BROKEN:
        screen.paragraph(f"warning: sqlalchemy {held} is installed here; a Prefect server that runs with it makes no "
                         "flow runs of a schedule: pip install 'sqlalchemy<2.1', then start the server anew")
    when = f"at {cron}{f' ({timezone})' if timezone else ''}" if cron else "when it is asked to"
    screen.say(f"alignloop/{label} runs {when}, on a worker of the pool {pool}; start one where it is to run:\n"
               f"    PREFECT_API_URL={os.environ['PREFECT_API_URL']} prefect worker start --pool {pool}\n"
               f"run it now:\n    prefect deployment run alignloop/{label}")
    return 0


def _register(label: str, pool: str, parameters: dict[str, Any], cron: str | None, timezone: str | None) -> None:
    """Make the pool, of processes, where there is none."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.deployments.runner import EntrypointType
    from prefect.exceptions import ObjectNotFound
    from prefect.schedules import Cron

    from flows.flow import align

    try:
        if cron:
            CronSchedule(cron=cron, timezone=timezone)
    except ValueError as error:
        why = str(error).partition("For further information")[0].strip().splitlines()[-1].strip()
        raise UserError(f"--cron: {cron!r} {timezone or ''}: {why}; expected minute, hour, day, month, day of the "
                        "week, such as '0 6 * * 1', and a zone such as Europe/Berlin") from None
    try:
        with get_client(sync_client=True) as client:
            try:
                client.read_work_pool(pool)
            except ObjectNotFound:
                client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        align.deploy(label, work_pool_name=pool, parameters=parameters, concurrency_limit=1,
                     schedule=Cron(cron, timezone=timezone) if cron else None,
                     entrypoint_type=EntrypointType.MODULE_PATH, print_next_steps=False, ignore_warnings=True)
    except Exception as error:  # whatever Prefect and its client raise
        raise UserError(f"Prefect: {os.environ['PREFECT_API_URL']} does not take it "
                        f"({type(error).__name__}: {str(error).partition(chr(10))[0]})") from None
