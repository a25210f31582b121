"""The engine's own sampling loop against transformers' `generate()`, on the same requests, in turns.

    python scripts/generate_loop.py [--rounds 3] [--weights 0.1M 14M]

`generate()` gets a logits processor that inverts the cumulative distribution at each row's own uniform numbers, so both
give the same samples. Prints processor time on one thread; docs/decisions/010-sampling-loop.md has its table.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    StoppingCriteria,
)

from pipeline.engines.engine import Request
from pipeline.engines.transformers import sampling as own
from pipeline.records import LENGTH, STOP

MODELS = {
    "0.1M": {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 2, "initializer_range": 0.2},
    "14M": {"vocab_size": 8192, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6,
            "num_attention_heads": 6},
}
LENGTHS = {"64": (64,), "8 to 64": (8, 16, 24, 32, 48, 64)}


class Draw(LogitsProcessor):
    """Leaves each row the one token that its uniform number chooses, and keeps that token's log-prob."""

    def __init__(self, rows: Any, width: int) -> None:
        self.rows, self.width, self.logps = rows, width, list[Tensor]()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        at = self.rows.uniforms[:, input_ids.shape[1] - self.width]
        chosen = own.choose(scores, at, self.rows.temperature, self.rows.top_p, self.rows.top_k)[:, None]
        self.logps.append(scores.log_softmax(-1).gather(1, chosen)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


class Ended(StoppingCriteria):
    """A row ends at one of its stop ids or at its own limit."""

    def __init__(self, stops: Tensor, limits: Tensor, width: int) -> None:
        self.stops, self.limits, self.width = stops, limits, width

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return (self.stops == input_ids[:, -1:]).any(1) | (input_ids.shape[1] - self.width >= self.limits)


@torch.inference_mode()
def by_generate(network: Any, requests: list[Request]) -> list[list[own.RawSample]]:
    """As transformers_sampling.generate: the prompt is computed once per request, its cache then repeated n times."""
    width = max(len(r.prompt_ids) for r in requests)
    ids = torch.tensor([[0] * (width - len(r.prompt_ids)) + [*r.prompt_ids] for r in requests])
    mask = torch.tensor([[0] * (width - len(r.prompt_ids)) + [1] * len(r.prompt_ids) for r in requests])
    samples = [r for r in requests for _ in range(r.n)]
    owner = torch.tensor([i for i, r in enumerate(requests) for _ in range(r.n)])
    cache = DynamicCache(config=network.config)
    before = mask[:, :-1]
    network(input_ids=ids[:, :-1], attention_mask=before, position_ids=(before.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache, logits_to_keep=1)
    cache.batch_select_indices(owner)
    draw = Draw(own._rows(requests, ids.device), width)
    ended = Ended(torch.tensor([r.stop_ids for r in samples]), torch.tensor([r.max_tokens for r in samples]), width)
    config = GenerationConfig(do_sample=False, max_new_tokens=max(r.max_tokens for r in requests), pad_token_id=0)
    made = network.generate(ids[owner], attention_mask=mask[owner], past_key_values=cache, generation_config=config,
                            logits_processor=[draw], stopping_criteria=[ended])[:, width:].tolist()
    logps = torch.stack(draw.logps, 1).tolist()
    groups: list[list[own.RawSample]] = [[] for _ in requests]
    for i, request, row, of_row in zip(owner.tolist(), samples, made, logps, strict=True):
        ends = (k + 1 for k, token in enumerate(row[: request.max_tokens]) if token in request.stop_ids)
        end = next(ends, request.max_tokens)
        reason = STOP if row[end - 1] in request.stop_ids else LENGTH
        groups[i].append(own.RawSample(row[:end], reason, tuple(of_row[:end])))
    return groups


def asked(vocabulary: int, lengths: tuple[int, ...]) -> list[Request]:
    """64 prompts of 8 to 48 tokens by length, n = 4, limits drawn from `lengths`."""
    rng = random.Random(1)
    found = [Request(tuple(rng.randrange(10, vocabulary) for _ in range(rng.randint(8, 48))), 4, 1.0, 1.0, 0,
                     rng.choice(lengths), (2, 6), 100 * i, True) for i in range(64)]
    return sorted(found, key=lambda request: len(request.prompt_ids))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weights", nargs="*", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for weights in options.weights:
        torch.manual_seed(0)
        network = LlamaForCausalLM(LlamaConfig(max_position_embeddings=256, tie_word_embeddings=True,
                                               pad_token_id=0, **MODELS[weights])).eval()
        network.generation_config = GenerationConfig()
        for name, lengths in LENGTHS.items():
            requests = asked(MODELS[weights]["vocab_size"], lengths)
            seconds: dict[str, list[float]] = {"own": [], "generate": []}
            made: dict[str, list[list[own.RawSample]]] = {}
            for _ in range(options.rounds):
                for label, sample in (("own", own.generate), ("generate", by_generate)):
                    start = time.process_time()
                    made[label] = [*sample(network, requests[:32]), *sample(network, requests[32:])]
                    seconds[label].append(time.process_time() - start)
            pairs = [(a, b) for x, y in zip(made["own"], made["generate"], strict=True)
                     for a, b in zip(x, y, strict=True)]
            same = sum((a.token_ids, a.finish_reason) == (b.token_ids, b.finish_reason) for a, b in pairs)
            ours, theirs = (statistics.median(values) for values in seconds.values())
            print(f"{weights}, limits {name}: own {ours:.2f} s, generate() {theirs:.2f} s, x{theirs / ours:.2f}; "
                  f"the same samples {same} of {len(pairs)}; mean tokens "
                  f"{statistics.mean(len(a.token_ids) for a, _ in pairs):.0f}", flush=True)


if __name__ == "__main__":
    main()
