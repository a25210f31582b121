"""Where vLLM's servers are, and how long one that does not answer is waited for."""

import contextlib
import os
import threading
import time
from pathlib import Path

import psutil

from pipeline.engines.vllm import client, service
from pipeline.engines.vllm.client import Server
from pipeline.engines.vllm.dispatch import ServerLost
from pipeline.engines.vllm.service import Settings
from pipeline.errors import UserError

_PATIENCE = 60.0  # seconds for a server that is not ours to come back


def servers_at(urls: str) -> list[Server]:
    """The user's own servers. Raises UserError for a wrong address, key or model name."""
    servers, problems = [], []
    for url in service.split(urls):
        try:
            servers.append(client.connect(url, os.environ.get(service.KEY, "")))
        except (ConnectionError, UserError) as error:
            problems.append(f"engine.url: {error}")
    if problems:
        raise UserError(*problems)
    return servers


class Keepers:
    """Where the servers are, and how long it is worth waiting for one that does not answer."""

    def __init__(self, environment: os._Environ[str] | dict[str, str], settings: Settings) -> None:
        self.owned = bool(environment.get(service.URL))
        self.urls = service.split(environment.get(service.URL) or settings.url or "")
        self.key = environment.get(service.KEY, "")
        pids = service.split(environment.get(service.PIDS, ""))
        self.pids = dict(zip(self.urls, map(int, pids), strict=False))
        logs = [log for log in environment.get(service.LOGS, "").split(os.pathsep) if log]
        self.logs = dict(zip(self.urls, map(Path, logs), strict=False))
        self.first_gap = Path(logs[0]).with_suffix(".gap.json") if logs else None  # of the run: its log is
        self.timeout = settings.start_timeout

    def connect(self) -> list[Server]:
        if not self.owned:  # the user's own; one of the run's that is gone is no mistake of theirs
            return servers_at(",".join(self.urls))
        return [self.wait(url, threading.Event()) for url in self.urls]

    def tail(self, url: str, lines: int) -> str:
        """What the server wrote last, where its log is known."""
        return service.tail(self.logs[url], lines) if url in self.logs else "its own log says why"

    def wait_for_end(self, url: str, over: threading.Event) -> None:
        """Return once the server that is being stopped no longer answers."""
        deadline = time.monotonic() + _PATIENCE
        with contextlib.suppress(ConnectionError):
            while client.healthy(url) and time.monotonic() < deadline and not over.wait(0.5):
                pass

    def wait(self, url: str, over: threading.Event) -> Server:
        """The server once it answers (again). Raises ServerLost when it will not, or when `over` is set."""
        deadline = time.monotonic() + (self.timeout if url in self.pids else _PATIENCE)
        while True:
            if url in self.pids and _ended(self.pids[url]):  # a server that still answers will not for long
                raise ServerLost(f"the vLLM server at {url} is lost (its keeper has ended)\n{self.tail(url, 30)}")
            try:
                if not client.healthy(url):  # its engine is dead: it will end soon
                    raise ConnectionError(f"{url}: not healthy")
                return client.connect(url, self.key)
            except ConnectionError as error:
                if time.monotonic() > deadline:
                    raise ServerLost(f"the vLLM server at {url} is lost ({error})\n{self.tail(url, 30)}") from None
            if over.wait(0.5):
                raise ServerLost(f"the vLLM server at {url} was not back in time")


def _ended(pid: int) -> bool:
    """Also where nobody has asked for its exit code yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
