"""vLLM on a Ray cluster: actors that each own an engine, on whatever nodes Ray finds room.

Ray only places them: an actor starts the server of `pipeline.engines.vllm.service` on its node, listening on the
node's address with the run's key, and from there on everything is as with `pipeline.engines.vllm.engine` and several
replicas. Every node must see the workspace under the same path.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline import supervisor
from pipeline.config import setting
from pipeline.engines.engine import Backend
from pipeline.engines.vllm import engine, served
from pipeline.engines.vllm import service as vllm_service
from pipeline.engines.vllm.engine import Engine, check_service
from pipeline.engines.vllm.service import tail
from pipeline.errors import UserError

__all__ = ["RayService", "Settings", "actor_log", "check_service", "open_engine", "start_service"]

_GRACE = 20.0  # seconds an ending host has for its actors and their servers


@dataclass(frozen=True)
class Settings(vllm_service.Settings):
    """`replicas` actors; the other settings are each one's own."""

    address: str | None = None  # of the cluster, or "auto"; null: a local one for the life of the run
    gpus_per_replica: int = setting(0, low=0)  # more than one: also arguments=[--tensor-parallel-size, N]
    cpus_per_replica: int = setting(1, low=0)  # that Ray sets aside

    def check(self) -> list[tuple[str, str]]:
        return [*super().check(), *([("keep_seconds", "expected 0, actors end too")] if self.keep_seconds else [])]


class RayService:
    """The actors of a run, held by a process of their own: as long as it lives, they do."""

    def __init__(self, model: Path, log: Path, settings: Settings) -> None:
        if importlib.util.find_spec("ray") is None:
            raise UserError("engine: ray is not installed here; install alignloop[ray], or use engine=vllm")
        if importlib.util.find_spec("vllm") is not None:  # it may be on the nodes of the actors only
            served.refuse_unserved(model)
        self.key, self.log, self._sleep_level = secrets.token_urlsafe(24), log, settings.sleep_level
        log.parent.mkdir(parents=True, exist_ok=True)
        self._urls = log.with_name(f"{log.stem}.{secrets.token_hex(4)}.urls.json")
        job = {"model": str(model.resolve()), "log": str(log.resolve()), "urls": str(self._urls.resolve()),
               "settings": dataclasses.asdict(settings)}
        command = [sys.executable, "-m", "pipeline.engines.vllm.ray_host", json.dumps(job)]
        self._process = subprocess.Popen(
            supervisor.command_line(command, log=log, grace=_GRACE), start_new_session=True,
            env={**os.environ, **supervisor.imports(), vllm_service.KEY: self.key,
                 "RAY_USAGE_STATS_ENABLED": "0"})
        self._service: vllm_service.Service | None = None

    @property
    def environment(self) -> dict[str, str]:
        logs = [str(actor_log(self.log, number)) for number in range(len(self._ready().urls))]
        return {**self._ready().environment, vllm_service.LOGS: os.pathsep.join(logs)}

    def alive(self) -> bool:
        return self._process.poll() is None

    def wait_ready(self, timeout: float) -> None:
        """Return when every actor's server serves. Raises RuntimeError with the log's last lines otherwise."""
        deadline = time.monotonic() + timeout
        while not self._urls.exists():
            if not self.alive():
                raise RuntimeError(f"the Ray actors ended with code {self._process.returncode}\n{tail(self.log)}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"the Ray actors do not serve after {timeout:.0f} s\n{tail(self.log)}")
            time.sleep(0.2)
        urls = json.loads(self._urls.read_text())
        processes = (self._process,) * len(urls)
        self._service = vllm_service.Service(tuple(urls), self.key, processes, self.log, self._sleep_level)
        self._service.wait_ready(max(deadline - time.monotonic(), 1.0))

    def rest(self) -> None:
        self._ready().rest()

    def wake(self) -> None:
        self._ready().wake()

    def stop(self) -> None:
        """End the actors and their servers. Safe to call twice."""
        if self.alive():
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE + 10)
            self._process.kill()
            self._process.wait()
        self._urls.unlink(missing_ok=True)

    def _ready(self) -> vllm_service.Service:
        if self._service is None:
            raise RuntimeError("wait_ready comes first: only then are the actors' addresses known")
        return self._service


def actor_log(log: Path, number: int) -> Path:
    """Where actor `number` writes, beside the host's log, under the same path on its own node."""
    return log.with_suffix(f".{number}.log")


def start_service(model: Path, log: Path, settings: Settings) -> RayService | None:
    """Start the actors that a whole run uses; None where `settings.url` names servers that already run."""
    if settings.url is None:
        return RayService(model, log, settings)
    engine.start_service(model, log, settings)
    return None


@contextlib.contextmanager
def open_engine(model: Path, settings: Settings, log: Path) -> Iterator[Engine]:
    """As `pipeline.engines.vllm.engine.open_engine`; without a running service the actors live as long as the stage."""
    with contextlib.ExitStack() as stack:
        if not os.environ.get(vllm_service.URL) and not settings.url:
            service = RayService(model, log, settings)
            stack.callback(service.stop)
            service.wait_ready(settings.start_timeout)
            stack.enter_context(_environment(service.environment))
        yield stack.enter_context(engine.open_engine(model, settings, log))


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


BACKEND = Backend(Settings, open_engine, start_service, check_service, refuse_model=engine.refuse_model,
                  shares_device=lambda s: s.sleep_level > 0, reachable=True)
