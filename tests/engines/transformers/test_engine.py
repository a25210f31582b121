"""The transformers engine: transformers' own `generate` is the oracle for greedy, hand-worked draws for the rest."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicLayer

from pipeline.engines.engine import Request, finished, model_facts
from pipeline.engines.transformers import engine as engine_module
from pipeline.engines.transformers import sampling
from pipeline.engines.transformers.sampling import choose
from pipeline.errors import UserError

STOP = (2, 6)
PROMPTS = [(1, 4, *range(20 + i, 22 + 3 * i), 5) for i in range(6)]


def ask(prompt, n=1, temperature=0.0, seed=0, top_p=1.0, top_k=0, max_tokens=24):
    return Request(tuple(prompt), n, temperature, top_p, top_k, max_tokens, STOP, seed)


def sample(model: Path, requests, **settings):
    with engine_module.open_engine(model, engine_module.Settings(**settings), model / "no.log") as engine:
        return list(engine.sample(requests))


def test_greedy_is_what_transformers_generates(tiny_model):
    oracle = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    answers = sample(tiny_model, [ask(prompt) for prompt in PROMPTS])
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = oracle.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=list(STOP))
        assert answer.samples[0].token_ids == tuple(ids[0, len(prompt) :].tolist())


def test_beam_search_without_repeated_ngrams_is_what_transformers_generates(tiny_model):
    """Prompts of one length, so that no padding is there; searched ones beside a drawn one keep their places."""
    oracle = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    prompts = [(1, 4, 20 + i, 21 + i, 20 + i, 5) for i in range(3)]
    requests = [replace(ask(prompt), beams=3, no_repeat_ngram=2) for prompt in prompts]
    answers = sample(tiny_model, [requests[0], ask(PROMPTS[3]), *requests[1:]])
    assert answers[1] == sample(tiny_model, [ask(PROMPTS[3])])[0]
    for prompt, answer in zip(prompts, [answers[0], *answers[2:]], strict=True):
        ids = oracle.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=list(STOP),
                              num_beams=3, no_repeat_ngram_size=2)[0].tolist()
        found = list(answer.samples[0].token_ids)
        assert ids[: len(prompt) + len(found)] == [*prompt, *found]
        assert (answer.samples[0].finish_reason == "stop") is (found[-1] in STOP)
        grams = list(itertools.pairwise([*prompt, *found]))
        assert len(set(grams)) == len(grams)


def test_searching_without_beams_repeats_nothing_either(tiny_model):
    """Greedy, but for the 2-grams that prompt or completion hold."""
    (answer,) = sample(tiny_model, [replace(ask(PROMPTS[2], max_tokens=40), no_repeat_ngram=2)])
    grams = list(itertools.pairwise([*PROMPTS[2], *answer.samples[0].token_ids]))
    assert len(set(grams)) == len(grams) > 10


def test_the_device_is_the_one_of_the_settings(tiny_model, monkeypatch):
    """Where there is a GPU too: hardware=cpu is handed on, and a GPU that is not there is the user's mistake."""
    with pytest.raises(UserError, match=r"runtime.device: cuda, but torch sees no CUDA device here; use hardware=cpu"):
        sample(tiny_model, [ask(PROMPTS[0])], device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    settings = engine_module.Settings(device="cpu")
    with engine_module.open_engine(tiny_model, settings, tiny_model / "no.log") as engine:
        assert engine.network.device == torch.device("cpu")
        assert len(next(iter(engine.sample([ask(PROMPTS[0])]))).samples[0].token_ids) == 24


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("adapted", [False, True])
def test_log_probs_for_the_probe_are_transformers_own(tiny_model, tmp_path, dtype, adapted):
    """What vLLM is compared with: the model's own forward and log_softmax, an adapter unmerged on its base."""
    network = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=getattr(torch, dtype))
    if adapted:
        network = peft.get_peft_model(network, peft.LoraConfig(r=4, init_lora_weights=False))
        network.save_pretrained(tmp_path)
    prompt, completion = PROMPTS[3], [31, 50, 7, 60, 2]
    with torch.inference_mode():
        logits = network.eval()(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].float()
    expected = logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]
    found = sampling.completion_logps(tmp_path if adapted else tiny_model, list(prompt), completion, dtype)
    assert found == pytest.approx(expected.tolist(), abs=1e-5 if dtype == "float32" else 2e-2)


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-5), ("bfloat16", 0.03)])
def test_opening_compares_what_is_sampled_with_what_is_trained(tiny_model, dtype, most):
    with engine_module.open_engine(tiny_model, engine_module.Settings(dtype=dtype), tiny_model / "no.log") as engine:
        assert 0.0 < engine.facts["logprob_gap"] < most


def test_an_engine_that_samples_from_another_model_does_not_open(tiny_model, monkeypatch):
    """Each token three positions further than it stands."""
    advance = sampling._advance
    monkeypatch.setattr(sampling, "_advance", lambda network, chosen, mask, cache: advance(
        lambda position_ids, **rest: network(position_ids=position_ids + 3, **rest), chosen, mask, cache))
    with pytest.raises(UserError, match=r"differ from the trainer's by 1\.\d+ nats per token, allowed are 0.0005"):
        sample(tiny_model, [ask(PROMPTS[0])])


def test_samples_do_not_depend_on_batch_or_order(tiny_model):
    requests = [ask(prompt, n=3, temperature=1.0, seed=100 * i) for i, prompt in enumerate(PROMPTS)]
    together = sample(tiny_model, requests)
    alone = sample(tiny_model, requests[::-1], batch_size=1, window=1)[::-1]
    assert together == alone
    assert len({s.token_ids for answer in together for s in answer.samples}) == 18  # and seeds do differ


def test_sample_j_is_the_seed_plus_j(tiny_model):
    (three,) = sample(tiny_model, [ask(PROMPTS[0], n=3, temperature=1.0, seed=40)])
    (last,) = sample(tiny_model, [ask(PROMPTS[0], n=1, temperature=1.0, seed=42)])
    assert three.samples[2] == last.samples[0]
    assert [s.seed for s in three.samples] == [40, 41, 42]


def test_stop_id_at_the_end_iff_stopped(tiny_model):
    answers = sample(tiny_model, [ask(p, n=16, temperature=1.5, seed=i * 50) for i, p in enumerate(PROMPTS)])
    samples = [s for answer in answers for s in answer.samples]
    assert {s.finish_reason for s in samples} == {"stop", "length"}
    for s in samples:
        assert (s.token_ids[-1] in STOP) == (s.finish_reason == "stop")
        assert not set(s.token_ids[:-1]) & set(STOP)
        assert len(s.token_ids) == 24 or s.finish_reason == "stop"


def test_top_k_top_p_and_stop_ids_cut_as_they_say(tiny_model):
    """Every token drawn with top-k 3 is among the three likeliest, with top-p 0.4 in the smallest set of that mass."""
    network = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    greedy, by_k, by_p, cut = sample(tiny_model, [
        ask(PROMPTS[0]), ask(PROMPTS[0], n=4, temperature=1.0, top_k=3), ask(PROMPTS[0], 4, 1.0, top_p=0.4),
        ask(PROMPTS[0], 2, 1.0, top_k=1)])
    assert {s.token_ids for s in cut.samples} == {greedy.samples[0].token_ids}
    ranks = []
    for one in (*by_k.samples, *by_p.samples):
        with torch.inference_mode():
            logits = network(torch.tensor([[*PROMPTS[0], *one.token_ids]])).logits[0, len(PROMPTS[0]) - 1 : -1]
        ordered, index = logits.softmax(-1).sort(descending=True)
        rank = (index == torch.tensor(one.token_ids)[:, None]).int().argmax(-1)
        before = (ordered.cumsum(-1) - ordered).gather(1, rank[:, None])[:, 0]
        assert rank.max() < 3 if one in by_k.samples else before.max() < 0.4
        ranks += rank.tolist()
    assert len(set(ranks)) > 2
    stop = greedy.samples[0].token_ids[2]
    (ended,) = sample(tiny_model, [replace(ask(PROMPTS[0]), stop_ids=(*STOP, stop))])
    assert ended.samples[0].token_ids[-1] == stop and ended.samples[0].finish_reason == "stop"


def test_one_failing_prompt_is_refused_and_the_others_of_its_batch_are_sampled(tiny_model):
    """Id 320 is outside the vocabulary: the network fails on the batch it is in."""
    requests = [ask(prompt, n=2, temperature=1.0, seed=9 * i) for i, prompt in enumerate(PROMPTS)]
    bad = [*requests[:4], ask((1, 320, 5)), ask(range(20, 260)), *requests[4:]]
    answers = sample(tiny_model, bad)
    assert answers[4].refused.startswith("IndexError")
    assert answers[5].refused == "prompt and max_tokens need 264 tokens, the context length is 256"
    assert [*answers[:4], *answers[6:]] == sample(tiny_model, requests)


def test_an_answer_that_breaks_the_contract_is_no_failing_prompt(tiny_model, monkeypatch):
    monkeypatch.setattr(engine_module, "finished", _raise)
    with pytest.raises(RuntimeError, match="broken contract"):
        sample(tiny_model, [ask(PROMPTS[0])])


def _raise(*_):
    raise RuntimeError("broken contract")


def test_the_roomy_cache_gives_what_transformers_own_gives(tiny_model, monkeypatch):
    """150 tokens grow it twice, and rows that end early leave it: the same ids and log-probs, bit by bit."""
    requests = [replace(ask(p, 3, 1.0, seed=9 * i, max_tokens=150 if i % 2 else 20), logprobs=True)
                for i, p in enumerate(PROMPTS)]
    roomy = sample(tiny_model, requests)
    assert max(len(s.token_ids) for answer in roomy for s in answer.samples) > 130
    monkeypatch.setattr(sampling, "_Roomy", DynamicLayer)
    assert sample(tiny_model, requests) == roomy


def test_choose_inverts_the_cumulative_distribution():
    """Probabilities 0.5, 0.3, 0.2: cumulative 0.5, 0.8, 1.0, so u = 0.49, 0.51, 0.79, 0.81 give 0, 1, 1, 2."""
    logits = torch.tensor([0.5, 0.3, 0.2]).log().repeat(4, 1)
    one, off = torch.ones(4), torch.zeros(4, dtype=torch.int64)
    drawn = choose(logits, torch.tensor([0.49, 0.51, 0.79, 0.81]), one, one, off)
    assert drawn.tolist() == [0, 1, 1, 2]


def test_temperature_sharpens():
    """At temperature 0.5 the probabilities 0.5, 0.3, 0.2 become 25/38, 9/38, 4/38: u = 0.6 now gives token 0."""
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    u, one, off = torch.tensor([0.6]), torch.ones(1), torch.zeros(1, dtype=torch.int64)
    assert choose(logits, u, one, one, off).item() == 1
    assert choose(logits, u, torch.tensor([0.5]), one, off).item() == 0


@pytest.mark.parametrize(("top_p", "top_k"), [(0.75, 0), (1.0, 2)])
def test_top_p_and_top_k_leave_two_tokens(top_p, top_k):
    """Tokens 1 and 2 hold 0.3 + 0.5: top-p 0.75 and top-k 2 both keep exactly them, renormalised to 3/8 and 5/8."""
    logits = torch.tensor([0.2, 0.3, 0.5]).log().repeat(3, 1)
    u = torch.tensor([0.0, 0.37, 0.38])
    drawn = choose(logits, u, torch.ones(3), torch.full((3,), top_p), torch.full((3,), top_k))
    assert drawn.tolist() == [1, 1, 2]


def test_drawn_frequencies_follow_the_probabilities():
    probs = torch.tensor([0.05, 0.15, 0.3, 0.5])
    u = (torch.arange(10_000) + 0.5) / 10_000
    drawn = choose(probs.log().repeat(10_000, 1), u, torch.ones(10_000), torch.ones(10_000), torch.zeros(10_000).long())
    assert drawn.bincount().tolist() == pytest.approx([500, 1500, 3000, 5000], abs=1)


@pytest.mark.parametrize(("ids", "reason"), [([5, 2, 7], "stop"), ([5, 2], "length"), ([], "stop"), ([5], "abort")])
def test_an_answer_that_breaks_the_stop_contract_is_an_error(ids, reason):
    with pytest.raises(RuntimeError, match="finish_reason"):
        finished(ids, reason, STOP)


def test_a_longrope_model_has_the_context_of_its_pretraining(tiny_model, tmp_path):
    """As Phi-4-mini writes it, in the keys of both kinds of reader; other scalings leave the length as it is."""
    assert model_facts(tiny_model).max_position == 256
    config = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 2}')
    for given in ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 96}},
                  {"rope_parameters": None, "rope_scaling": {"type": "longrope"},
                   "original_max_position_embeddings": 96}):
        (tmp_path / "config.json").write_text(json.dumps(config | given))
        assert model_facts(tmp_path).max_position == 96
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_parameters": {
        "rope_type": "llama3", "original_max_position_embeddings": 96}}))
    assert model_facts(tmp_path).max_position == 256


def test_model_facts_and_what_is_missing(tiny_model, tmp_path):
    assert model_facts(tiny_model).stop_ids == STOP
    assert model_facts(tiny_model).vocab_size == 320
    with pytest.raises(UserError, match=r"config\.json: not found"):
        model_facts(tmp_path)
    (tmp_path / "config.json").write_text('{"vocab_size": 320}')
    with pytest.raises(UserError) as caught:
        model_facts(tmp_path)
    assert len(caught.value.problems) == 2  # no stop id, no context length
