"""The vLLM engine against a real server (one for the whole test run) and against transformers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import psutil
import pytest

from pipeline.engines import transformers as oracle_module
from pipeline.engines import vllm, vllm_service
from pipeline.engines.engine import Request
from pipeline.records import UserError

pytestmark = pytest.mark.slow
STOP = (2, 6)
PROMPTS = [(1, 4, *range(20 + i, 22 + 3 * i), 5) for i in range(8)]


def ask(prompt, n=1, temperature=0.0, seed=0, max_tokens=24):
    return Request(tuple(prompt), n, temperature, 1.0, 0, max_tokens, STOP, seed)


def sample(module, model: Path, requests, **settings):
    with module.open_engine(model, module.Settings(**settings), model / "no.log") as engine:
        return list(engine.sample(requests))


@pytest.fixture(scope="module")
def other_model(make_model, tmp_path_factory):
    """The same architecture as tiny_model with other weights."""
    return make_model(tmp_path_factory.mktemp("models") / "other", seed=1)


def test_greedy_equals_transformers_and_reload_really_changes_the_weights(use_vllm, tiny_model, other_model):
    requests = [ask(prompt) for prompt in PROMPTS]
    first = sample(vllm, tiny_model, requests)
    second = sample(vllm, other_model, requests)
    again = sample(vllm, tiny_model, requests)
    assert first == sample(oracle_module, tiny_model, requests)
    assert second == sample(oracle_module, other_model, requests)
    assert again == first
    assert second != first


def test_the_gap_to_transformers_is_reported(use_vllm, tiny_model):
    with vllm.open_engine(tiny_model, vllm.Settings(), tiny_model / "no.log") as engine:
        list(engine.sample([ask(PROMPTS[0])]))
        assert engine.facts["logprob_gap"] < 1e-3
        assert engine.context_length == 256


def test_stale_weights_stop_the_run(use_vllm, tiny_model, other_model):
    """The server is given other weights behind the engine's back."""
    with vllm.open_engine(tiny_model, vllm.Settings(probe=False), tiny_model / "no.log") as engine:
        vllm._load(use_vllm.url, use_vllm.key, other_model)
        gap = vllm._gap(use_vllm.url, use_vllm.key, tiny_model, vllm.Settings())
        assert gap > 0.5
        known: Future[float] = Future()
        known.set_result(gap)
        stale = vllm.Engine(engine.url, engine.key, tiny_model, vllm.Settings(), 256, {}, known)
        with pytest.raises(RuntimeError, match="does not serve the weights"):
            next(stale.sample([ask(PROMPTS[0])]))


def test_samples_depend_on_their_seed_and_on_nothing_else(use_vllm, tiny_model):
    requests = [ask(prompt, n=3, temperature=1.0, seed=100 * i) for i, prompt in enumerate(PROMPTS)]
    together = sample(vllm, tiny_model, requests)
    one_by_one = sample(vllm, tiny_model, requests[::-1], concurrency=1)[::-1]
    assert together == one_by_one
    assert len({s.token_ids for answer in together for s in answer.samples}) == 24
    (last,) = sample(vllm, tiny_model, [ask(PROMPTS[0], n=1, temperature=1.0, seed=2)])
    assert last.samples[0] == together[0].samples[2]


def test_stop_id_at_the_end_iff_stopped(use_vllm, tiny_model):
    answers = sample(vllm, tiny_model, [ask(p, n=16, temperature=1.5, seed=i * 50) for i, p in enumerate(PROMPTS)])
    samples = [s for answer in answers for s in answer.samples]
    assert {s.finish_reason for s in samples} == {"stop", "length"}
    for s in samples:
        assert (s.token_ids[-1] in STOP) == (s.finish_reason == "stop")
        assert not set(s.token_ids[:-1]) & set(STOP)


def test_prompt_ids_arrive_as_they_were_sent(use_vllm, tiny_model):
    """BOS once, nothing added: the server gives back the ids it computed on."""
    body = {**vllm._body(ask(PROMPTS[3])), "temperature": 0.0}
    status, answer = vllm._http(f"{use_vllm.url}/v1/completions", use_vllm.key, body)
    assert status == 200
    assert tuple(answer["choices"][0]["prompt_token_ids"]) == PROMPTS[3]
    assert PROMPTS[3].count(1) == 1


def test_one_refused_request_leaves_the_others(use_vllm, tiny_model):
    too_long = ask(range(20, 300), max_tokens=24)
    refused, fine = sample(vllm, tiny_model, [too_long, ask(PROMPTS[0])])
    assert refused.samples == ()
    assert "context length" in refused.refused
    assert len(fine.samples) == 1


def test_wrong_key_and_wrong_architecture_are_the_users_to_fix(use_vllm, tiny_model, make_model, tmp_path):
    deeper = make_model(tmp_path / "deeper", num_hidden_layers=3)
    for url, key, model, expected in (
        (use_vllm.url, "wrong", tiny_model, "refuses the key"),
        (use_vllm.url, use_vllm.key, deeper, "num_hidden_layers 2 there, 3 here"),
    ):
        with pytest.raises(UserError, match=expected):
            vllm._load(url, key, model)


def test_a_url_where_nobody_answers_is_the_users_to_fix(tiny_model, tmp_path, monkeypatch):
    monkeypatch.delenv(vllm_service.URL, raising=False)
    settings = vllm_service.Settings(url="http://127.0.0.1:9")
    opened = vllm.open_engine(tiny_model, settings, tmp_path / "log")
    with pytest.raises(UserError, match=r"engine\.url: .*no vLLM server answers"), opened:
        pass


def test_the_key_is_on_no_command_line_and_in_no_log(use_vllm):
    tree = [psutil.Process(use_vllm.process.pid), *psutil.Process(use_vllm.process.pid).children(recursive=True)]
    assert len(tree) >= 3  # supervisor, server, engine
    assert not any(use_vllm.key in " ".join(process.cmdline()) for process in tree)
    assert use_vllm.key not in use_vllm.log.read_text()
    assert use_vllm.key not in repr(use_vllm)


def test_a_server_that_dies_at_start_says_why(tiny_model, tmp_path):
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"torn")
    service = vllm_service.start(broken, tmp_path / "vllm.log", vllm_service.Settings(max_sequences=8))
    try:
        with pytest.raises(RuntimeError, match=r"(?s)vLLM ended with code 1 .*whole log"):
            service.wait_ready(240)
    finally:
        service.stop()


def test_kill_9_of_its_owner_leaves_no_process(tiny_model, tmp_path):
    """The owner is killed while the server loads: every process it had is gone seconds later."""
    code = (
        "import sys, time; from pathlib import Path; from pipeline.engines import vllm_service as v;"
        "s = v.start(Path(sys.argv[1]), Path(sys.argv[2]), v.Settings());"
        "print(s.process.pid, flush=True); time.sleep(600)"
    )
    environment = {k: v for k, v in os.environ.items() if k not in (vllm_service.URL, vllm_service.KEY)}
    log = tmp_path / "vllm.log"
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tiny_model), str(log)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert owner.stdout is not None
    supervisor = psutil.Process(int(owner.stdout.readline()))
    deadline = time.monotonic() + 240
    while len(family := [supervisor, *supervisor.children(recursive=True)]) < 4:  # the engine's process has started
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.3)
    owner.kill()
    owner.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_settings_name_a_url_that_is_none():
    (problem,) = vllm_service.Settings(url="localhost:8000").check()
    assert problem == ("url", "expected http://HOST:PORT, got 'localhost:8000'")
    assert vllm.start_service(Path("unused"), Path("unused"), vllm.Settings(url="http://elsewhere:8000")) is None


def test_the_services_arguments(tiny_model):
    """A whole prompt per step on CPU: a seeded request cut into chunks kills vLLM's engine there."""
    made = vllm_service.arguments(tiny_model, 1234, vllm_service.Settings(arguments=("--seed", "3")))
    assert made[made.index("--max-model-len") + 1] == "256"
    assert "--no-enable-chunked-prefill" in made
    assert made[-2:] == ["--seed", "3"]
    assert json.dumps(made)  # all text
    assert "--no-enable-chunked-prefill" not in vllm_service.arguments(
        tiny_model, 1234, vllm_service.Settings(chunked_prefill=True)
    )
