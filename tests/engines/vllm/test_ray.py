"""vLLM through Ray: two CPU actors of the tiny model against the test run's one server. A cluster of its own."""

from __future__ import annotations

import importlib.util
import os

import psutil
import pytest

from pipeline.engines.engine import Request
from pipeline.engines.vllm import engine as vllm
from pipeline.engines.vllm import ray
from pipeline.engines.vllm import service as vllm_service
from pipeline.errors import UserError


def requests(temperature: float) -> list[Request]:
    prompts = [(1, 4, *range(20 + i, 23 + i % 7), 5) for i in range(24)]
    return [Request(p, 2, temperature, 1.0, 0, 24, (2, 6), seed=100 * i) for i, p in enumerate(prompts)]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_two_actors_give_what_one_server_gives_and_leave_nothing_behind(use_vllm, tiny_model, tmp_path, monkeypatch):
    expected = {}
    for temperature in (0.0, 1.0):
        with vllm.open_engine(tiny_model, vllm.Settings(), tmp_path / "no.log") as engine:
            expected[temperature] = list(engine.sample(requests(temperature)))
    for name in (vllm_service.URL, vllm_service.KEY, vllm_service.PIDS):
        monkeypatch.delenv(name)
    settings = ray.Settings(replicas=2, max_sequences=16, start_timeout=400)
    service = ray.start_service(tiny_model, tmp_path / "logs" / "engine.log", settings)
    try:
        service.wait_ready(settings.start_timeout)
        host = psutil.Process(service._process.pid)
        everything = [host, *host.children(recursive=True)]
        assert sum("api_server" in " ".join(p.cmdline()) for p in everything) >= 2
        for name, value in service.environment.items():
            monkeypatch.setenv(name, value)
        with ray.open_engine(tiny_model, settings, tmp_path / "no.log") as engine:
            assert list(engine.sample(requests(0.0))) == expected[0.0]
            assert list(engine.sample(requests(1.0))) == expected[1.0]
            assert engine.facts["replicas"] == 2
    finally:
        service.stop()
    _, alive = psutil.wait_procs(everything, timeout=30)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
    assert os.environ[vllm_service.URL]  # of the stage's environment: untouched by opening


def test_where_ray_is_missing_that_is_said(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="ray is not installed here"):
        ray.start_service(tiny_model, tmp_path / "log", ray.Settings())


def test_servers_that_already_run_need_no_actors(tiny_model, tmp_path):
    settings = ray.Settings(url="http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"engine\.url: .*no vLLM server answers"):
        ray.start_service(tiny_model, tmp_path / "log", settings)
