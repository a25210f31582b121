"""The generation loop of the transformers engine. Imports torch: only used inside an open engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from pipeline.engines.engine import ModelFacts, Request, adapter_base, probe
from pipeline.lm import folders, logps, prefix
from pipeline.lm.examples import Example
from pipeline.lm.settings import THIS_MACHINE
from pipeline.records import LENGTH, STOP

_ROOM = 64  # positions that the cache grows by
_SHRINK_BELOW = 0.75  # drop finished rows from the batch once the unfinished are fewer than this share of it


def load(model: Path, dtype: str, device: torch.device) -> Any:
    """The folder's causal language model in evaluation mode. A LoRA adapter (peft's folder format) is put on its base,
    unmerged: what the trainer computes with.
    """
    base = adapter_base(model)
    network = folders.load_policy(base or model, device, options={"dtype": getattr(torch, dtype)})
    if base:
        from pipeline.lm import adapters  # peft is slow to import, and vLLM's server imports this module

        network = adapters.put_on(network, model)
    return network.eval()


def completion_logps(model: Path, prompt_ids: list[int], completion_ids: list[int], dtype: str) -> list[float]:
    """Log-prob in nats of every completion token given all before it, by transformers on the CPU."""
    folders.quiet()
    example = Example("probe", np.array(prompt_ids, np.int32), (np.array(completion_ids, np.int32),))
    network = load(model, dtype, torch.device("cpu"))
    prefix.check_head(network)
    return logps.token_logps(network, [example], THIS_MACHINE, "float32")[0][0]


def gap(network: Any, facts: ModelFacts) -> float:
    """Mean absolute difference, nats per token, between the log-probs of tokens as they are sampled, left padded and
    with a cache, and those of the pass that trains, over the greedy answers to two prompts of different lengths.
    """
    long = probe(facts)
    requests = [long, replace(long, prompt_ids=long.prompt_ids[:7])]
    made = [sample for (sample,) in generate(network, requests)]
    prefix.check_head(network)
    trained = logps.token_logps(network, [
        Example(f"probe {i}", np.array(request.prompt_ids, np.int32), (np.array(sample.token_ids, np.int32),))
        for i, (request, sample) in enumerate(zip(requests, made, strict=True))], THIS_MACHINE, "float32")
    return float(np.mean([abs(a - b) for sample, (own,) in zip(made, trained, strict=True)
                          for a, b in zip(sample.logprobs or (), own, strict=True)]))


@dataclass(frozen=True)
class RawSample:
    """One completion: its log-probs are nats per token under the model itself, None where nobody asked."""

    token_ids: list[int]
    finish_reason: str
    logprobs: tuple[float, ...] | None


@dataclass(frozen=True)
class _Rows:
    """The sampling parameters of each of B rows (one row per sample)."""

    temperature: Tensor  # (B,) float32
    top_p: Tensor  # (B,) float32
    top_k: Tensor  # (B,) int64, 0: off
    uniforms: Tensor  # (B, T) float32 in [0, 1): row b's randomness, from its own seed

    def keep(self, rows: Tensor) -> _Rows:
        return _Rows(self.temperature[rows], self.top_p[rows], self.top_k[rows], self.uniforms[rows])


@torch.inference_mode()
def generate(network: Any, requests: list[Request]) -> list[list[RawSample]]:
    """For each request its n completions. The prompt is computed once per request."""
    device = network.device
    owner = [i for i, request in enumerate(requests) for _ in range(request.n)]
    rows = _rows(requests, device)
    logits, cache, mask = _prefill(network, requests)
    expand = torch.tensor(owner, device=device)
    cache.batch_select_indices(expand)
    logits, mask = logits[expand], mask[expand]
    alive = list(range(len(owner)))  # the sample each row of the batch belongs to
    made: list[list[int]] = [[] for _ in owner]
    logps: list[list[float]] = [[] for _ in owner]
    wanted = any(request.logprobs for request in requests)
    done = [False] * len(owner)
    step = 0
    while True:
        chosen = choose(logits, rows.uniforms[:, step], rows.temperature, rows.top_p, rows.top_k)
        step += 1
        kept = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0].tolist() if wanted else [0.0] * len(alive)
        for sample, token, logp in zip(alive, chosen.tolist(), kept, strict=True):
            if not done[sample]:
                made[sample].append(token)
                logps[sample].append(logp)
                request = requests[owner[sample]]
                done[sample] = token in request.stop_ids or len(made[sample]) == request.max_tokens
        left = [row for row, sample in enumerate(alive) if not done[sample]]
        if not left:
            break
        if len(left) < _SHRINK_BELOW * len(alive):
            index = torch.tensor(left, device=device)
            cache.batch_select_indices(index)
            rows, mask, chosen, alive = rows.keep(index), mask[index], chosen[index], [alive[row] for row in left]
        logits, mask = _advance(network, chosen, mask, cache)
    groups: list[list[RawSample]] = [[] for _ in requests]
    for i, ids, of_ids in zip(owner, made, logps, strict=True):
        reason = STOP if ids[-1] in requests[i].stop_ids else LENGTH
        groups[i].append(RawSample(ids, reason, tuple(of_ids) if requests[i].logprobs else None))
    return groups


@torch.inference_mode()
def stream(network: Any, request: Request) -> Iterator[int]:
    """The ids of the request's first sample, one by one: those that `generate` gives."""
    rows = _rows([request], network.device)
    logits, cache, mask = _prefill(network, [request])
    for step in range(request.max_tokens):
        chosen = choose(logits, rows.uniforms[:, step], rows.temperature, rows.top_p, rows.top_k)
        yield int(chosen)
        if int(chosen) in request.stop_ids:
            return
        logits, mask = _advance(network, chosen, mask, cache)


@torch.inference_mode()
def search(network: Any, requests: list[Request]) -> list[RawSample]:
    """The best completion that beam search finds of each request. All are searched as the first one says.

    A token that would complete an n-gram that prompt or completion hold already is not taken (no_repeat_ngram).
    """
    first = requests[0]
    ids, mask = _padded(network, requests)
    config = GenerationConfig(num_beams=first.beams, no_repeat_ngram_size=first.no_repeat_ngram, do_sample=False,
                              max_new_tokens=first.max_tokens, eos_token_id=list(first.stop_ids),
                              pad_token_id=first.stop_ids[0])
    found, made = network.generate(input_ids=ids, attention_mask=mask, generation_config=config), []
    for row in found[:, ids.shape[1] :].tolist():
        end = next((i for i, token in enumerate(row, 1) if token in first.stop_ids), len(row))
        made.append(RawSample(row[:end], STOP if row[end - 1] in first.stop_ids else LENGTH, None))
    return made


class _Roomy(DynamicLayer):
    """A layer's keys and values with room for the steps to come: transformers' own copies all of them at every step."""

    room: tuple[Tensor, Tensor] | None = None  # each (rows, heads, positions, size); what is used of it is in front

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            return super().update(key_states, value_states, *args, **kwargs)
        assert self.keys is not None and self.values is not None
        used = self.keys.shape[-2]
        end = used + key_states.shape[-2]
        if self.room is None or end > self.room[0].shape[-2]:
            self.room = self._grown(self.keys, end + _ROOM), self._grown(self.values, end + _ROOM)
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[..., used:end, :] = new
        self.keys, self.values = self.room[0][..., :end, :], self.room[1][..., :end, :]
        return self.keys, self.values

    @staticmethod
    def _grown(states: Tensor, positions: int) -> Tensor:
        rows, heads, used, size = states.shape
        room = states.new_empty(rows, heads, positions, size)
        room[..., :used, :] = states
        return room

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.room = None


def _advance(network: Any, chosen: Tensor, mask: Tensor, cache: DynamicCache) -> tuple[Tensor, Tensor]:
    """Logits (B, V) float32 behind the tokens `chosen` (B,), and the mask with them."""
    mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    positions = mask.sum(1, keepdim=True) - 1
    answer = network(input_ids=chosen[:, None], attention_mask=mask, position_ids=positions, past_key_values=cache)
    return answer.logits[:, -1].float(), mask


def choose(logits: Tensor, uniforms: Tensor, temperature: Tensor, top_p: Tensor, top_k: Tensor) -> Tensor:
    """One token per row by inverting the cumulative distribution at `uniforms`; the largest where temperature is 0.

    logits (B, V) float32; uniforms, temperature, top_p (B,) float32; top_k (B,) int64, 0: off. Returns (B,) int64.
    top-p keeps the smallest set of most probable tokens whose mass reaches top_p (Holtzman et al. 2020).
    """
    greedy = temperature == 0
    probs = (logits / torch.where(greedy, 1.0, temperature)[:, None]).softmax(-1)
    if bool((top_p < 1).any()) or bool((top_k > 0).any()):
        ordered, index = probs.sort(stable=True, dim=-1, descending=True)
        rank = torch.arange(probs.shape[1], device=probs.device)
        limit = torch.where(top_k > 0, top_k, probs.shape[1])[:, None]
        ordered = ordered * (rank < limit)
        mass = ordered.sum(-1, keepdim=True)
        ordered = ordered * (ordered.cumsum(-1) - ordered < top_p[:, None] * mass)
        probs = torch.zeros_like(probs).scatter(1, index, ordered)
    cumulative = probs.double().cumsum(-1)
    target = uniforms.double()[:, None] * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=probs.shape[1] - 1)
    return torch.where(greedy, logits.argmax(-1), drawn)


def _rows(requests: list[Request], device: torch.device) -> _Rows:
    samples = [(request, j) for request in requests for j in range(request.n)]
    longest = max(request.max_tokens for request in requests)
    uniforms = [torch.rand(longest, generator=torch.Generator().manual_seed(r.seed + j)) for r, j in samples]
    return _Rows(torch.tensor([r.temperature for r, _ in samples], device=device),
                 torch.tensor([r.top_p for r, _ in samples], device=device),
                 torch.tensor([r.top_k for r, _ in samples], device=device), torch.stack(uniforms).to(device))


def _padded(network: Any, requests: list[Request]) -> tuple[Tensor, Tensor]:
    """The prompts, left padded, and their mask, both (R, P) int64."""
    width = max(len(request.prompt_ids) for request in requests)
    ids = torch.zeros(len(requests), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, request in enumerate(requests):
        ids[row, width - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids)
        mask[row, width - len(request.prompt_ids) :] = 1
    return ids.to(network.device), mask.to(network.device)


def _prefill(network: Any, requests: list[Request]) -> tuple[Tensor, DynamicCache, Tensor]:
    """Logits after each prompt (R, V) float32, the cache of R rows, and the left-padded mask (R, P) int64."""
    ids, mask = _padded(network, requests)
    cache = DynamicCache(config=network.config)
    cache.layers = [_Roomy() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    answer = network(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
                     logits_to_keep=1)
    return answer.logits[:, -1].float(), cache, mask
