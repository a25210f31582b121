"""What the probe of a server's weights is taken for: no answer is none, and rounding is judged by the run's first."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from pipeline.engines.vllm import engine
from pipeline.engines.vllm.service import Service, Settings


@dataclass(frozen=True)
class Server:
    url: str = "http://127.0.0.1:1"


def probe_that(error: Exception, recovers: set[str] | None = None, times: int = 10**9):
    """A `gap` that raises `times` times, behind which the dispatcher has taken the server up; then 0.01."""
    calls: list[int] = []

    def gap(*_) -> float:
        calls.append(1)
        if len(calls) > times:
            return 0.01
        if recovers is not None:
            recovers.add(Server.url)
        raise error

    return gap


def first(monkeypatch, gap, recovered: set[str]) -> float:
    monkeypatch.setattr(engine, "gap", gap)
    monkeypatch.setattr(engine, "_PAUSE", 0.001)
    return engine._first_gap(Server(), Path("model"), Settings(silence_timeout=0.05), {}, recovered)


def test_a_server_that_does_not_answer_its_probe_is_a_failure(monkeypatch) -> None:
    silent = ConnectionError("no sign of life for 60 s")
    with pytest.raises(RuntimeError, match=r"nobody knows which it serves \(no sign of life for 60 s\)"):
        first(monkeypatch, probe_that(silent), set())
    assert first(monkeypatch, probe_that(silent, times=2), set()) == 0.01  # it answers the third time
    lost: set[str] = set()
    assert first(monkeypatch, probe_that(silent, recovers=lost), lost) == 0.0  # looked at again before it serves


def test_a_gap_is_judged_by_that_of_the_runs_first_weights(tmp_path: Path) -> None:
    """bfloat16: up to 0.1 at first; then five times the first one, between 0.025 and 0.1."""
    half, path = Settings(dtype="bfloat16"), tmp_path / "engine.gap.json"
    assert engine.allowed(None, half) == engine.allowed(path, half) == 0.1
    for gap, limit in ((0.001, 0.025), (0.01, 0.05), (0.06, 0.1)):
        path.write_text(json.dumps({"bfloat16": gap}))
        assert engine.allowed(path, half) == pytest.approx(limit)
    assert engine.allowed(path, Settings(dtype="bfloat16", probe_tolerance=0.3)) == 0.3
    assert engine.allowed(path, Settings(dtype="float32")) == 5e-4  # another number format starts anew


@dataclass
class Sleeper:
    """A server that waits, at `path`, until as many are there as there are servers."""

    together: list[str] = field(default_factory=list)

    def serve(self, number: int) -> ThreadingHTTPServer:
        sleeper = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sleeper.together.append(self.path)
                for _ in range(2000):
                    if len(sleeper.together) >= number:
                        break
                    time.sleep(0.005)
                self.send_response(200 if len(sleeper.together) >= number else 500)
                self.end_headers()

            def log_message(self, *_) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=server.serve_forever, daemon=True).start()
        return server


def test_replicas_go_to_sleep_together() -> None:
    """Each answers only when all have been asked."""
    sleeper = Sleeper()
    servers = [sleeper.serve(3) for _ in range(3)]
    urls = tuple(f"http://127.0.0.1:{server.server_port}" for server in servers)
    Service(urls, "key", (), Path("log"), sleep_level=2).rest()
    assert sleeper.together == ["/sleep?level=2"] * 3
    for server in servers:
        server.shutdown()
        server.server_close()
