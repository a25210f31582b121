"""Whether a server that waits will do for a run: with a small server that knows the key instead of vLLM."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipeline import waiting
from pipeline.engines.vllm import kept, ray, service
from pipeline.engines.vllm.service import Service, Settings

SETTINGS = Settings(keep_seconds=60.0)


@dataclass
class Waiting:
    record: dict
    keeper: subprocess.Popen
    server: http.server.HTTPServer
    place: Path
    log: Path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What is looked at of a model's folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    facts = {"architectures": ["LlamaForCausalLM"], "vocab_size": 99, "max_position_embeddings": 256, "hidden_size": 8,
             "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(facts))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def waits(model: Path, tmp_path: Path) -> Iterator[Waiting]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            right = self.headers["Authorization"] == "Bearer secret"
            self.send_response(200 if right else 401)
            self.end_headers()
            self.wfile.write(json.dumps({"data": [{"id": service.SERVED}] if right else []}).encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = waiting.folder(tmp_path)
    wait = "import time; print('up', flush=True); time.sleep(600)"
    keeper = subprocess.Popen([sys.executable, "-c", wait, str(place)], stdout=subprocess.PIPE)
    assert keeper.stdout is not None
    keeper.stdout.readline()
    running = Service((f"http://127.0.0.1:{server.server_port}",), "secret", (keeper,), tmp_path / "first.log")
    record = json.loads(json.dumps(kept.record(running, model, SETTINGS)))
    yield Waiting(record, keeper, server, place, tmp_path / "logs" / "second.log")
    server.shutdown()
    keeper.kill()
    keeper.wait()


def resume(found: Waiting, model: Path, settings: Settings = SETTINGS, **changes) -> Service:
    return kept.resume({**found.record, **changes}, model, found.log, settings, found.place)


def test_the_same_engine_goes_on(waits, model, tmp_path):
    taken = resume(waits, model)
    assert (taken.url, taken.key) == (waits.record["urls"][0], "secret")
    assert taken.environment[service.PIDS] == str(waits.keeper.pid)
    assert taken.alive()
    taken.wait_ready(5)
    assert waits.record["log"] == str(tmp_path / "first.log")
    taken.stop()
    assert waits.keeper.wait(5) == -15 and not taken.alive()


def test_other_weights_of_the_same_architecture_are_no_other_engine(waits, model, tmp_path):
    """They are swapped in."""
    other = Path(shutil.copytree(model, tmp_path / "other"))
    (other / "model.safetensors").write_bytes(b"others")
    assert resume(waits, other).alive()


@pytest.mark.parametrize(("change", "why"), [
    ({"dtype": "bfloat16"}, "arguments"), ({"context_length": 128}, "arguments"), ({"lora_rank": 8}, "arguments"),
    ({"arguments": ("--seed", "1")}, "arguments"), ({"replicas": 2}, "surroundings"),
    ({"kv_cache_gb": 2}, "surroundings")])
def test_other_settings_need_another_engine(waits, model, change, why):
    with pytest.raises(waiting.Unusable, match=f"this run needs another one: {why} changed"):
        resume(waits, model, replace(SETTINGS, **change))


@pytest.mark.parametrize("change", [{"keep_seconds": 5.0}, {"probe": False}, {"silence_timeout": 9.0}])
def test_settings_that_make_no_other_server_do_not(waits, model, change):
    assert resume(waits, model, replace(SETTINGS, **change)).alive()


def test_another_architecture_or_environment_needs_another_engine(waits, model, monkeypatch):
    (model / "config.json").write_text((model / "config.json").read_text().replace("99", "100"))
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    with pytest.raises(waiting.Unusable, match="another one: architecture, surroundings changed"):
        resume(waits, model)


def test_its_weights_are_gone(waits, model, tmp_path):
    """It serves, but could not come back after a crash."""
    later = Path(shutil.copytree(model, tmp_path / "later"))
    (model / "model.safetensors").unlink()
    with pytest.raises(waiting.Unusable, match=f"the weights it was started with are gone: {model}"):
        resume(waits, later)


def test_a_run_with_servers_of_the_users_own_takes_those(waits, model):
    with pytest.raises(waiting.Unusable, match=r"engine\.url names others"):
        resume(waits, model, Settings(url="http://here:8000"))


def test_its_keeper_was_killed_or_the_machine_started_anew(waits, model):
    waits.keeper.kill()
    waits.keeper.wait()
    with pytest.raises(waiting.Unusable, match="it has ended"):
        resume(waits, model)


@pytest.mark.parametrize(("change", "why"), [
    ({"key": "another"}, "nothing answers at http"), ({"urls": ["http://127.0.0.1:9"]}, "nothing answers at http"),
])
def test_another_server_in_its_place_or_none(waits, model, change, why):
    with pytest.raises(waiting.Unusable, match=why):
        resume(waits, model, **change)


def test_a_record_of_other_code(waits, model):
    with pytest.raises(waiting.Unusable, match="another one: code changed"):
        resume(waits, model, made={**waits.record["made"], "code": "0" * 64})


def test_only_servers_of_a_runs_own_can_be_kept():
    assert [key for key, _ in Settings(url="http://here:8000", keep_seconds=1.0).check()] == ["keep_seconds"]
    assert [key for key, _ in ray.Settings(keep_seconds=1.0).check()] == ["keep_seconds"]
    assert Settings(keep_seconds=1.0).check() == ray.Settings().check() == []
