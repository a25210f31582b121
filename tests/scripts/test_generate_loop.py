"""`generate()` with a processor that inverts the cumulative distribution gives the samples of the engine's own loop."""

from dataclasses import replace

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from pipeline.engines.transformers import sampling
from scripts import generate_loop as script


def test_both_ways_give_the_same_samples():
    torch.manual_seed(0)
    network = LlamaForCausalLM(LlamaConfig(
        max_position_embeddings=256, tie_word_embeddings=True, pad_token_id=0, **script.MODELS["0.1M"])).eval()
    network.generation_config = GenerationConfig()
    requests = script.asked(320, (4, 8, 16))[::8]
    requests = [*requests[:4], *(replace(one, temperature=0.7, top_p=0.9, top_k=40) for one in requests[4:])]
    ours = sampling.generate(network, requests)
    theirs = script.by_generate(network, requests)
    flat = [(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]
    assert all((a.token_ids, a.finish_reason) == (b.token_ids, b.finish_reason) for a, b in flat)
    gaps = [abs(p - q) for a, b in flat for p, q in zip(a.logprobs, b.logprobs, strict=True)]
    assert max(gaps) < 1e-4 and len({len(a.token_ids) for a, _ in flat}) > 3
    assert {a.finish_reason for a, _ in flat} == {"stop", "length"}
