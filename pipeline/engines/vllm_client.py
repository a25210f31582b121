"""Talking to one vLLM server: what it is, putting weights in, asking for samples.

A server started with our middleware (`pipeline.engines.vllm_server`) is asked many requests at a time over /policy; any
other vLLM server one at a time over the OpenAI protocol. Blocking calls of the standard library: whoever wants many in
flight uses threads, which wait without a cost.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.engines import vllm_service
from pipeline.engines.engine import FACTS, Answer, Request, Sample, adapter_base, adapter_rank, finished
from pipeline.records import UserError

_NOT_ARCHITECTURE = {"transformers_version", "torch_dtype", "dtype", "_name_or_path", "use_cache"}
_SEQUENCES = 256  # in one forward pass of a server that does not say


@dataclass(frozen=True)
class Server:
    """A vLLM server that serves our model name."""

    url: str
    key: str = field(repr=False)
    context_length: int
    max_sequences: int
    model: str  # the folder it was started with, on its machine
    lora_rank: int  # 0: no adapters
    ours: bool  # it has /policy


def connect(url: str, key: str) -> Server:
    """Find out what serves there. Raises UserError for a wrong key or model name, ConnectionError if nobody answers."""
    status, answer = call(f"{url}/v1/models", key)
    if status in (401, 403):
        raise UserError(f"{url}: the vLLM server refuses the key in {vllm_service.KEY}")
    served = [m for m in answer.get("data", []) if m.get("id") == vllm_service.SERVED]
    if status != 200 or not served:
        names = ", ".join(str(m.get("id")) for m in answer.get("data", [])) or "nothing"
        raise UserError(f"{url}: no model named {vllm_service.SERVED!r} is served there, but {names}; start vLLM with "
                        f"--served-model-name {vllm_service.SERVED}")
    status, facts = call(f"{url}/policy", key)
    if status != 200:
        return Server(url, key, int(served[0]["max_model_len"]), _SEQUENCES, str(served[0].get("root", "")), 0, False)
    return Server(url, key, facts["context_length"], facts["max_sequences"], facts["model"], facts["lora_rank"], True)


def load(server: Server, model: Path) -> None:
    """Put the folder's weights, or its LoRA adapter, into the server. Raises UserError where that cannot fit."""
    base = adapter_base(model)
    _same_architecture(Path(server.model), base or model, server.url)
    if base and server.lora_rank < adapter_rank(model):
        raise UserError(f"{server.url}: {model} is a LoRA adapter of rank {adapter_rank(model)}, the vLLM server takes "
                        f"ranks up to {server.lora_rank}; set engine.lora_rank={adapter_rank(model)}")
    weights, adapter = str((base or model).resolve()), str(model.resolve()) if base else None
    if server.ours:
        steps: list[tuple[str, dict[str, Any]]] = [("policy/load", {"model": weights, "adapter": adapter})]
    else:  # as much as vLLM itself can do; the probe tells whether it was enough
        reload = {"method": "reload_weights", "kwargs": {"weights_path": weights}}
        steps = [("collective_rpc", reload), ("reset_prefix_cache", {})]
    for path, data in steps:
        status, answer = call(f"{server.url}/{path}", server.key, data)
        if status == 404:
            raise UserError(f"{server.url}: the vLLM server cannot swap weights; start it with VLLM_SERVER_DEV_MODE=1, "
                            f"--worker-extension-cls {vllm_service.EXTENSION} and "
                            f"--middleware {vllm_service.MIDDLEWARE}")
        if status != 200 or answer.get("success") is False:
            raise RuntimeError(f"{server.url}/{path} answered {status} for the weights of {model}: {answer}")


def ask(
    server: Server, requests: list[Request], decode: Callable[..., str], connections: set
) -> Iterator[tuple[int, Answer]]:
    """(index, answer) of each request as it comes. Ends early, or raises OSError, when the connection is lost.

    The open connection is in `connections` meanwhile: who closes it there ends the call, and the requests with it.
    """
    if not server.ours:
        for index, request in enumerate(requests):
            yield index, _ask_openai(server, request, decode)
        return
    address = urlsplit(server.url)
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    connection = kind(address.netloc)
    connections.add(connection)
    try:
        body = "\n".join(json.dumps(_parameters(request)) for request in requests)
        connection.request("POST", f"{address.path}/policy/sample", body, {"Authorization": f"Bearer {server.key}"})
        response = connection.getresponse()
        if response.status != 200:
            raise ConnectionError(f"{server.url}/policy/sample answered {response.status}: {response.read(500)!r}")
        for line in response:
            index, answer = json.loads(line)
            yield index, _answer(answer, requests[index], decode)
    except http.client.HTTPException as error:
        raise ConnectionError(f"{server.url}: {type(error).__name__}: {error}") from None
    finally:
        connections.discard(connection)
        connection.close()


def _parameters(request: Request) -> dict[str, Any]:
    return {
        "prompt": request.prompt_ids,
        "n": 1 if request.temperature == 0 else request.n,  # vLLM refuses several greedy ones: they are all the same
        "seed": request.seed,  # vLLM gives sample j of n the seed + j
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "max_tokens": request.max_tokens,
        "stop_token_ids": request.stop_ids,
        "logprobs": request.logprobs,
    }


def _answer(answer: Any, request: Request, decode: Callable[..., str]) -> Answer:
    if isinstance(answer, str):
        return Answer(refused=answer)
    samples = []
    for j, (token_ids, reason, logprobs) in enumerate(answer * request.n if request.temperature == 0 else answer):
        ids, reason = finished(token_ids, reason, request.stop_ids)
        kept = None if logprobs is None else tuple(logprobs)
        samples.append(Sample(ids, reason, decode(ids), request.seed + j, kept))
    return Answer(tuple(samples))


def _ask_openai(server: Server, request: Request, decode: Callable[..., str]) -> Answer:
    body = {
        **_parameters(request),
        "model": vllm_service.SERVED,
        "logprobs": 0 if request.logprobs else None,
        "ignore_eos": True,  # the stop ids are exactly ours, none of the server's own
        "return_token_ids": True,
    }
    status, answer = call(f"{server.url}/v1/completions", server.key, body)
    if status == 400:
        return Answer(refused=str(answer["error"]))
    if status != 200:
        raise ConnectionError(f"{server.url} answered {status}: {answer}")
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    samples = [[c["token_ids"], c["finish_reason"], c["logprobs"] and c["logprobs"]["token_logprobs"]] for c in choices]
    return _answer(samples, request, decode)


def _same_architecture(served: Path, model: Path, url: str) -> None:
    """In-place loading needs equal shapes. A server on another machine cannot be asked: its folder is not here."""
    if not (served / FACTS).is_file():
        return
    was, now = (json.loads((folder / FACTS).read_text()) for folder in (served, model))
    differ = [k for k in sorted({*was, *now} - _NOT_ARCHITECTURE) if was.get(k) != now.get(k)]
    if differ:
        found = ", ".join(f"{k} {was.get(k)!r} there, {now.get(k)!r} here" for k in differ)
        raise UserError(f"{url}: the vLLM server runs another architecture than {model / FACTS} ({found}); "
                        f"start it anew with this model")


def call(url: str, key: str, data: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    """(status, JSON answer) of one GET, or POST with `data`. Raises ConnectionError where nobody answers."""
    body = None if data is None else json.dumps(data).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=600) as response:
            text = response.read()
            return response.status, json.loads(text) if text else {}
    except urllib.error.HTTPError as error:
        return error.code, {"error": _message(error.read().decode(errors="replace"))}
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ConnectionError(f"{url}: no vLLM server answers there ({error})") from None


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:500]
