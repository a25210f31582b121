"""The vLLM engine against a real server (one for the whole test run) and against transformers."""

from __future__ import annotations

import http.server
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pipeline.engines.engine import Request
from pipeline.engines.transformers import engine as oracle_module
from pipeline.engines.transformers.sampling import completion_logps
from pipeline.engines.vllm import client, plugin
from pipeline.engines.vllm import engine as vllm
from pipeline.engines.vllm import service as vllm_service
from pipeline.errors import UserError
from pipeline.stages import generate

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
    long = (1, 4, *range(20, 110), 5)  # the last two share whole blocks, which must not outlive the weights
    requests = [*(ask(prompt) for prompt in PROMPTS), ask(long), ask((*long[:70], 5))]
    first = sample(vllm, tiny_model, requests)
    second = sample(vllm, other_model, requests)
    again = sample(vllm, tiny_model, requests)
    assert first == sample(oracle_module, tiny_model, requests)
    assert second == sample(oracle_module, other_model, requests)
    assert again == first
    assert second != first


def test_a_server_of_the_users_own_is_looked_at_not_started(use_vllm, tiny_model, tmp_path):
    assert vllm.start_service(tiny_model, tmp_path / "log", vllm.Settings(url=use_vllm.url)) is None


def test_the_gap_to_transformers_is_reported(use_vllm, tiny_model):
    with vllm.open_engine(tiny_model, vllm.Settings(), tiny_model / "no.log") as engine:
        list(engine.sample([ask(PROMPTS[0])]))
        assert engine.facts["logprob_gap"] < 1e-3
        assert engine.context_length == 256


def test_stale_weights_stop_the_run(use_vllm, tiny_model, other_model):
    """The server is given other weights behind the engine's back."""
    server = client.connect(use_vllm.url, use_vllm.key)
    with vllm.open_engine(tiny_model, vllm.Settings(probe=False), tiny_model / "no.log") as engine:
        gap = vllm.gap(client.load(server, other_model), tiny_model, vllm.Settings(), {})
        assert gap > 0.5
        engine.gaps.result()
        serving = (client.load(server, other_model),)
        stale = replace(engine, servers=serving, gaps=_known(gap), settings=vllm.Settings())
        with pytest.raises(UserError, match="does not serve the weights"):
            next(stale.sample([ask(PROMPTS[0])]))


def test_the_probe_is_computed_once_for_all_replicas(use_vllm, tiny_model, monkeypatch):
    server = client.load(client.connect(use_vllm.url, use_vllm.key), tiny_model)
    known: vllm.ProbeLogps = {}
    first = vllm.gap(server, tiny_model, vllm.Settings(), known)
    assert first < 1e-3 and len(known) == 1
    monkeypatch.setattr(vllm, "_transformers_logps", None)  # a second computation would fail
    assert vllm.gap(server, tiny_model, vllm.Settings(), known) == pytest.approx(first, abs=1e-6)


def test_who_relies_on_an_earlier_loading_is_refused(use_vllm, tiny_model, other_model):
    """Before it asks, and while it waits for answers; a server that nothing was loaded into was started anew."""
    server = client.connect(use_vllm.url, use_vllm.key)
    mine = client.load(server, tiny_model)
    assert len(_ask(mine, [ask(PROMPTS[0])])) == 1
    long = [ask(PROMPTS[i % 8], n=4, temperature=1.0, seed=50 * i, max_tokens=200) for i in range(64)]
    answers = client.ask(mine, long, lambda ids: "", set(), 30)
    next(answers)
    theirs = client.load(server, other_model)
    assert theirs.load != mine.load
    with pytest.raises(UserError, match="another run loaded weights into the vLLM server"):
        list(answers)
    with pytest.raises(UserError, match="another run loaded weights into the vLLM server"):
        _ask(mine, [ask(PROMPTS[0])])
    assert len(_ask(theirs, [ask(PROMPTS[0])])) == 1
    assert isinstance(client._other_load(mine, {"load": ""}), ConnectionError)


def test_what_a_stopping_server_gives_up_is_no_answer():
    """vLLM ends what is in flight with finish_reason "abort" when it is told to stop: it must be asked again."""
    with pytest.raises(ConnectionError, match="it is being stopped"):
        client._answer([[[], "abort", None]], ask(PROMPTS[0]), lambda ids: "")


def _ask(server, requests):
    return dict(client.ask(server, requests, lambda ids: "", set(), 30))


def test_a_server_that_samples_for_long_gives_signs_of_life(use_vllm, tiny_model):
    """One request that takes longer than the silence allowed: empty lines come meanwhile, and none is an answer."""
    server = client.load(client.connect(use_vllm.url, use_vllm.key), tiny_model)
    slow = [replace(ask(PROMPTS[0], n=24, temperature=1.0, max_tokens=230), stop_ids=(319,))]
    began = time.monotonic()
    found = dict(client.ask(server, slow, lambda ids: "", set(), 600))
    took = time.monotonic() - began
    again = dict(client.ask(server, slow, lambda ids: "", set(), max(took / 3, 0.2)))
    assert again == found and len(found[0].samples) == 24


def test_groups_cut_and_stop_as_in_transformers(use_vllm, tiny_model):
    """Draws with one possible outcome are the same in both engines; sampled tokens are among those the cut leaves."""
    import torch
    from transformers import AutoModelForCausalLM

    prompt = PROMPTS[3]
    (greedy,) = sample(vllm, tiny_model, [ask(prompt)])
    third = greedy.samples[0].token_ids[2]
    single = [replace(ask(prompt, 2, 1.0, seed=4), top_k=1), replace(ask(prompt, 2, 1.0, seed=4), top_p=1e-6),
              replace(ask(prompt), stop_ids=(*STOP, third)), ask(prompt, max_tokens=5)]
    served = sample(vllm, tiny_model, single)
    assert served == sample(oracle_module, tiny_model, single)
    assert served[2].samples[0].token_ids[-1] == third and served[2].samples[0].finish_reason == "stop"
    assert len(served[3].samples[0].token_ids) == 5
    network = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    cut = [replace(ask(prompt, 8, 1.0), top_k=3), replace(ask(prompt, 8, 1.0, seed=90), top_p=0.4)]
    by_k, by_p = sample(vllm, tiny_model, cut)
    for one in (*by_k.samples, *by_p.samples):
        with torch.inference_mode():
            logits = network(torch.tensor([[*prompt, *one.token_ids]])).logits[0, len(prompt) - 1 : -1]
        ordered, index = logits.softmax(-1).sort(descending=True)
        rank = (index == torch.tensor(one.token_ids)[:, None]).int().argmax(-1)
        before = (ordered.cumsum(-1) - ordered).gather(1, rank[:, None])[:, 0]
        assert rank.max() < 3 if one in by_k.samples else before.max() < 0.4 + 1e-4
    assert len({s.token_ids for s in by_k.samples}) > 1


def _known(value: float):
    future: Future[float] = Future()
    future.set_result(value)
    return future


def test_sampled_log_probs_are_the_models_own_at_any_temperature(use_vllm, tiny_model):
    requests = [replace(ask(PROMPTS[1], n=2, temperature=0.5, seed=3), logprobs=True), ask(PROMPTS[1])]
    for module in (vllm, oracle_module):
        wanted, unwanted = sample(module, tiny_model, requests)
        for one in wanted.samples:
            logps = completion_logps(tiny_model, list(PROMPTS[1]), list(one.token_ids), "float32")
            assert one.logprobs == pytest.approx(logps, abs=1e-4)
        assert unwanted.samples[0].logprobs is None


def test_a_lora_adapter_is_served_unmerged_and_leaves_with_the_next_policy(use_vllm, tiny_model, adapter):
    requests = [ask(prompt) for prompt in PROMPTS]
    base, adapted = sample(vllm, tiny_model, requests), sample(vllm, adapter, requests)
    assert adapted == sample(oracle_module, adapter, requests)
    assert adapted != base
    assert sample(vllm, tiny_model, requests) == base


def test_an_adapter_that_the_server_cannot_take_is_the_users_to_fix(use_vllm, adapter, tmp_path):
    server = client.connect(use_vllm.url, use_vllm.key)
    assert server.lora_rank == 8
    with pytest.raises(UserError, match=r"rank 4, the vLLM server takes ranks up to 2; set engine\.lora_rank=4"):
        client.load(replace(server, lora_rank=2), adapter)
    lost = tmp_path / "lost"
    lost.mkdir()
    (lost / "adapter_config.json").write_text(json.dumps({"r": 4, "base_model_name_or_path": "org/elsewhere"}))
    with pytest.raises(UserError, match=r"base_model_name_or_path is 'org/elsewhere'"):
        client.load(server, lost)


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory) -> Path:
    """A LoRA adapter of rank 4 with random weights on tiny_model, as peft saves it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("models") / "adapter"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(
            r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"], init_lora_weights=False,
            task_type="CAUSAL_LM"))
    model.save_pretrained(folder)
    return folder


def test_any_vllm_server_will_do_over_the_openai_protocol(use_vllm, tiny_model):
    """Asked as a server without our endpoints is: the same samples, log-probs and refusals."""
    server = client.load(client.connect(use_vllm.url, use_vllm.key), tiny_model)
    requests = [replace(ask(p, n=2, temperature=1.0, seed=9 * i), logprobs=i == 1) for i, p in enumerate(PROMPTS)]
    requests.append(ask(range(20, 300)))
    answers = {}
    for ours in (True, False):
        answers[ours] = _ask(replace(server, ours=ours), requests)
    for i in range(len(PROMPTS)):
        assert [s.token_ids for s in answers[True][i].samples] == [s.token_ids for s in answers[False][i].samples]
    assert answers[True][1].samples[0].logprobs == pytest.approx(answers[False][1].samples[0].logprobs, abs=1e-5)
    assert answers[False][0].samples[0].logprobs is None
    assert answers[True][8].refused and answers[False][8].refused


def test_without_the_key_nothing_but_health_answers(use_vllm):
    """vLLM 0.32 itself guards only /v1: whoever reached the port could swap the weights."""
    for path in ("/collective_rpc", "/sleep", "/reset_prefix_cache", "/policy", "/policy/load", "/v1/models"):
        for key in ("", "wrong"):
            assert client.call(use_vllm.url + path, key)[0] == 401, path
            assert client.call(use_vllm.url + path, key, {})[0] == 401, path
    assert client.call(f"{use_vllm.url}/health", "")[0] == 200


def test_sleep_on_cpu_is_refused_so_that_the_server_goes_on_answering(use_vllm, tiny_model):
    assert client.call(f"{use_vllm.url}/sleep?level=1", use_vllm.key, {})[0] == 409
    replace(use_vllm, sleep_level=1).rest()  # as a run does between stages: nothing happens
    assert sample(vllm, tiny_model, [ask(PROMPTS[0])])[0].samples


def test_samples_depend_on_their_seed_and_on_nothing_else(use_vllm, tiny_model):
    requests = [ask(prompt, n=3, temperature=1.0, seed=100 * i) for i, prompt in enumerate(PROMPTS)]
    together = sample(vllm, tiny_model, requests)
    one_by_one = sample(vllm, tiny_model, requests[::-1], concurrency=1)[::-1]
    assert together == one_by_one
    assert len({s.token_ids for answer in together for s in answer.samples}) == 24
    (last,) = sample(vllm, tiny_model, [ask(PROMPTS[0], n=1, temperature=1.0, seed=2)])
    assert last.samples[0] == together[0].samples[2]


def test_several_greedy_samples_are_the_one_greedy_sample(use_vllm, tiny_model):
    """vLLM refuses n above 1 at temperature 0."""
    several, one = sample(vllm, tiny_model, [ask(PROMPTS[2], n=3, seed=5), ask(PROMPTS[2])])
    assert [s.token_ids for s in several.samples] == [one.samples[0].token_ids] * 3
    assert [s.seed for s in several.samples] == [5, 6, 7]


def test_stop_id_at_the_end_iff_stopped(use_vllm, tiny_model):
    answers = sample(vllm, tiny_model, [ask(p, n=16, temperature=1.5, seed=i * 50) for i, p in enumerate(PROMPTS)])
    samples = [s for answer in answers for s in answer.samples]
    assert {s.finish_reason for s in samples} == {"stop", "length"}
    for s in samples:
        assert (s.token_ids[-1] in STOP) == (s.finish_reason == "stop")
        assert not set(s.token_ids[:-1]) & set(STOP)


def test_prompt_ids_arrive_as_they_were_sent(use_vllm, tiny_model):
    """BOS once, nothing added: the server gives back the ids it computed on."""
    body = {**client._parameters(ask(PROMPTS[3])), "model": vllm_service.SERVED, "logprobs": None,
            "return_token_ids": True}
    status, answer = client.call(f"{use_vllm.url}/v1/completions", use_vllm.key, body)
    assert status == 200
    assert tuple(answer["choices"][0]["prompt_token_ids"]) == PROMPTS[3]
    assert PROMPTS[3].count(1) == 1


def test_one_refused_request_leaves_the_others(use_vllm, tiny_model):
    too_long = ask(range(20, 300), max_tokens=24)
    refused, fine = sample(vllm, tiny_model, [too_long, ask(PROMPTS[0])])
    assert refused.samples == ()
    assert "context length" in refused.refused
    assert len(fine.samples) == 1


def test_wrong_key_and_wrong_architecture_are_the_users_to_fix(use_vllm, tiny_model, make_model, tmp_path, monkeypatch):
    deeper = make_model(tmp_path / "deeper", num_hidden_layers=3)
    server = client.connect(use_vllm.url, use_vllm.key)
    with pytest.raises(UserError, match="num_hidden_layers 2 there, 3 here"):
        client.load(server, deeper)
    with pytest.raises(UserError, match="num_hidden_layers 2 there, 3 here"):  # a run: as soon as there is a model
        vllm.start_service(deeper, tmp_path / "log", vllm.Settings(url=use_vllm.url))
    larger = make_model(tmp_path / "larger", vocab_size=352)
    elsewhere = replace(server, model="/on/another/machine")
    with pytest.raises(UserError, match=r"vocabulary of 320 tokens, .*larger one of 352; start it anew"):
        client.load(elsewhere, larger)
    monkeypatch.setenv(vllm_service.KEY, "wrong")
    opened = vllm.open_engine(tiny_model, vllm.Settings(), tmp_path / "log")
    with pytest.raises(UserError, match="refuses the key in ALIGNLOOP_ENGINE_KEY"), opened:
        pass
    (problem,) = vllm.check_service(vllm.Settings(url=use_vllm.url))
    assert problem == f"engine.url: {use_vllm.url}: the vLLM server refuses the key in ALIGNLOOP_ENGINE_KEY"


@pytest.fixture
def stranger() -> Iterator[str]:
    """A server that answers as vLLM does, with a model of another name."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = b"[]" if self.path.startswith("/no") else json.dumps(
                {"data": [{"id": "llama", "max_model_len": 8}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_model_of_another_name_is_the_users_to_fix(stranger, tiny_model, tmp_path, monkeypatch):
    monkeypatch.delenv(vllm_service.URL, raising=False)
    opened = vllm.open_engine(tiny_model, vllm.Settings(url=stranger), tmp_path / "log")
    with pytest.raises(UserError, match=r"no model named 'policy' is served there, but llama; start vLLM with"), opened:
        pass


def test_what_is_wrong_with_servers_is_all_told_while_planning(stranger):
    """A model of another name, something that is no vLLM, and nobody: three problems, one line each."""
    urls = f"{stranger},{stranger}/not,http://127.0.0.1:9"
    other, foreign, nobody = vllm.check_service(vllm.Settings(url=urls))
    assert other.startswith(f"engine.url: {stranger}: no model named 'policy' is served there, but llama")
    assert foreign.startswith(f"engine.url: {stranger}/not/v1/models: no vLLM server answers there (it answers b'[]')")
    assert nobody.startswith("engine.url: http://127.0.0.1:9/v1/models: no vLLM server answers there")
    settings = generate.Settings("pipeline.engines.vllm", "float32")
    runtime = generate.Runtime({"module": "pipeline.engines.vllm", "url": stranger})
    assert generate.check(settings, runtime) == [other]
    assert generate.check(settings, generate.Runtime({"module": "pipeline.engines.vllm"})) == []
    assert generate.check(settings, generate.Runtime({"module": "pipeline.engines.transformers"})) == []


def test_a_url_where_nobody_answers_is_the_users_to_fix(tiny_model, tmp_path, monkeypatch):
    monkeypatch.delenv(vllm_service.URL, raising=False)
    settings = vllm_service.Settings(url="http://127.0.0.1:9")
    opened = vllm.open_engine(tiny_model, settings, tmp_path / "log")
    with pytest.raises(UserError, match=r"engine\.url: .*no vLLM server answers"), opened:
        pass
    with pytest.raises(UserError, match=r"engine\.url: .*no vLLM server answers"):  # a run asks before its first step
        vllm.start_service(tiny_model, tmp_path / "log", settings)


def test_the_key_is_on_no_command_line_and_in_no_log(use_vllm):
    keeper = psutil.Process(use_vllm.processes[0].pid)
    tree = [keeper, *keeper.children(recursive=True)]
    assert len(tree) >= 4  # keeper, supervisor, server, engine
    assert not any(use_vllm.key in " ".join(process.cmdline()) for process in tree)
    assert use_vllm.key not in use_vllm.log.read_text()
    assert use_vllm.key not in repr(use_vllm)


def test_a_server_that_does_not_start_says_why(tiny_model, tmp_path):
    settings = vllm_service.Settings(arguments=("--no-such-option",))
    service = vllm_service.start(tiny_model, tmp_path / "vllm.log", settings)
    try:
        with pytest.raises(RuntimeError, match=r"(?s)vLLM ended with code 2 .*--no-such-option.*whole log"):
            service.wait_ready(240)
    finally:
        service.stop()


@pytest.mark.long
def test_a_server_that_dies_of_torn_weights_says_why(tiny_model, tmp_path):
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"torn")
    service = vllm_service.start(broken, tmp_path / "vllm.log", vllm_service.Settings(max_sequences=8))
    try:
        with pytest.raises(RuntimeError, match=r"(?s)vLLM ended with code 1 .*whole log"):
            service.wait_ready(240)
    finally:
        service.stop()


@pytest.mark.long
def test_kill_9_of_its_owner_leaves_no_process(tiny_model, tmp_path):
    """The owner is killed while the server loads: every process it had is gone seconds later."""
    code = (
        "import sys, time; from pathlib import Path; from pipeline.engines.vllm import service as v;"
        "s = v.start(Path(sys.argv[1]), Path(sys.argv[2]), v.Settings());"
        "print(s.processes[0].pid, flush=True); time.sleep(600)"
    )
    environment = {k: v for k, v in os.environ.items() if k not in (vllm_service.URL, vllm_service.KEY)}
    log = tmp_path / "vllm.log"
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tiny_model), str(log)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert owner.stdout is not None
    keeper = psutil.Process(int(owner.stdout.readline()))
    deadline = time.monotonic() + 240
    while len(family := [keeper, *keeper.children(recursive=True)]) < 5:  # the engine's process has started
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.3)
    owner.kill()
    owner.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_settings_name_a_url_that_is_none():
    (problem,) = vllm_service.Settings(url="http://a:1, localhost:8000").check()
    assert problem == ("url", "expected http://HOST:PORT, got 'localhost:8000'")
    (problem,) = vllm_service.Settings(url="http://a:1, http://b:1,http://a:1/").check()
    assert problem == ("url", "names http://a:1 twice, expected each server once")


def test_the_services_arguments(tiny_model, monkeypatch):
    """A whole prompt per step on CPU: a seeded request cut into chunks kills vLLM's engine there."""
    monkeypatch.setattr(vllm_service, "on_cpu", lambda: True)
    made = vllm_service.arguments(tiny_model, "10.0.0.7", 1234, vllm_service.Settings(arguments=("--seed", "3")))
    assert made[made.index("--max-model-len") + 1] == "256"
    assert made[made.index("--host") + 1] == "10.0.0.7"
    assert "--no-enable-chunked-prefill" in made
    assert "--enable-lora" not in made
    assert made[-2:] == ["--seed", "3"]
    assert json.dumps(made)  # all text
    other = vllm_service.Settings(chunked_prefill=True, lora_rank=16)
    changed = vllm_service.arguments(tiny_model, "127.0.0.1", 1234, other)
    assert "--no-enable-chunked-prefill" not in changed
    assert made[made.index("--block-size") + 1] == "32"  # of the CPU kernels
    assert changed[changed.index("--max-lora-rank") + 1] == "16"


def test_processes_of_ours_nap_where_vllm_spins_and_others_are_left_alone(monkeypatch):
    """vLLM waits for a message without sleeping for a second behind the last one; ours polls for a millisecond."""
    pytest.importorskip("vllm")
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    def naps() -> list[int | None]:
        slept: list[int | None] = []
        waiting = SpinCondition.__new__(SpinCondition)
        waiting.is_reader, waiting.busy_loop_s, waiting.last_read = True, 100, time.monotonic()
        waiting.read_cancel_socket, waiting.local_notify_socket = "cancel", "notify"
        waiting.poller = SimpleNamespace(poll=lambda timeout: slept.append(timeout) or [])
        waiting.wait(timeout_ms=5)
        waiting.last_read -= 200
        waiting.wait(timeout_ms=5)
        return slept

    assert "alignloop" in {found.name for found in importlib.metadata.entry_points(group="vllm.general_plugins")}
    monkeypatch.setattr(SpinCondition, "wait", SpinCondition.wait)  # put back behind the test
    monkeypatch.setenv("VLLM_PLUGINS", "another")
    environment = vllm_service.engine_environment(vllm_service.Settings())
    assert (plugin.PATIENT in environment) == vllm_service.on_cpu()
    assert environment["VLLM_PLUGINS"] == "another,alignloop"
    monkeypatch.delenv(plugin.PATIENT, raising=False)
    plugin.register()
    assert naps() == [5]
    monkeypatch.setenv(plugin.PATIENT, "1")
    plugin.register()
    assert naps() == [1, 5]


def test_replicas_share_the_cores_or_gpus(monkeypatch):
    """Seven things in three: 2, 2, 3; two things for three: the first is used twice."""
    seven = list("abcdefg")
    assert [vllm_service.share(seven, i, 3) for i in range(3)] == [["a", "b"], ["c", "d"], ["e", "f", "g"]]
    assert [vllm_service.share(["a", "b"], i, 3) for i in range(3)] == [["a"], ["b"], ["a"]]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    made = vllm_service.engine_environment(vllm_service.Settings(replicas=2), 1)
    assert made["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert "CUDA_VISIBLE_DEVICES" not in vllm_service.engine_environment(vllm_service.Settings())
