"""Talking to one vLLM server: what it is, putting weights in, asking for samples.

A server started with our middleware (`pipeline.engines.vllm.server`) is asked many requests at a time over /policy; any
other vLLM server one at a time over the OpenAI protocol. Blocking calls of the standard library: whoever wants many in
flight uses threads, which wait without a cost.
"""

import http.client
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline import clock, web
from pipeline.engines.engine import FACTS, Answer, Request, Sample, adapter_base, adapter_rank, finished, model_facts
from pipeline.engines.vllm import service
from pipeline.errors import UserError

NOT_ARCHITECTURE = {"transformers_version", "torch_dtype", "dtype", "_name_or_path", "use_cache"}
_SEQUENCES = 256  # in one forward pass of a server that does not say
_ABORTED = "abort"  # vLLM's finish_reason for what was in flight when it was told to stop
_OTHER_LOAD = 409  # what vllm_server answers where other weights have been loaded since
_BEATS = 4  # signs of life that a server of ours owes within the seconds after which it counts as lost
_ANSWER_SECONDS = 600.0  # for what has no sign of life: loading weights, a request over the OpenAI protocol
_LOOK_SECONDS = 10.0


@dataclass(frozen=True)
class Server:
    """A vLLM server that serves our model name."""

    url: str
    key: str = field(repr=False)
    context_length: int
    max_sequences: int
    model: str  # the folder it was started with, on its machine
    vocab_size: int | None  # None: it does not say
    lora_rank: int  # 0: no adapters
    ours: bool  # it has /policy
    load: str = ""  # the loading of weights that whoever asks relies on


class Stopping(ConnectionError):
    """The server still answers, but not for long."""


def connect(url: str, key: str) -> Server:
    """Find out what serves there. Raises UserError for a wrong key or model name, ConnectionError if nobody answers."""
    status, answer = call(f"{url}/v1/models", key, seconds=_LOOK_SECONDS)
    if status in (401, 403):
        raise UserError(f"{url}: the vLLM server refuses the key in {service.KEY}")
    models = answer.get("data", [])
    if status != 200 or not all("max_model_len" in model for model in models):
        raise UserError(f"{url}: what answers there is no vLLM server (/v1/models: {status} {str(answer)[:100]})")
    served = [model for model in models if model["id"] == service.SERVED]
    if not served:
        names = ", ".join(str(model["id"]) for model in models) or "nothing"
        raise UserError(f"{url}: no model named {service.SERVED!r} is served there, but {names}; start vLLM with "
                        f"--served-model-name {service.SERVED}")
    status, facts = call(f"{url}/policy", key, seconds=_LOOK_SECONDS)
    if status != 200:
        root = str(served[0].get("root", ""))
        return Server(url, key, int(served[0]["max_model_len"]), _SEQUENCES, root, None, 0, False)
    return Server(url, key, facts["context_length"], facts["max_sequences"], facts["model"], facts["vocab_size"],
                  facts["lora_rank"], True)


def fits(server: Server, model: Path) -> None:
    """Raises UserError where the folder's weights, or its LoRA adapter, cannot be put into the server."""
    base = adapter_base(model)
    _same_architecture(Path(server.model), base or model, server.url)
    size = model_facts(model).vocab_size
    if server.vocab_size not in (None, size):
        raise UserError(f"{server.url}: the vLLM server has a vocabulary of {server.vocab_size} tokens, {model} one of "
                        f"{size}; start it anew with this model")
    if base and server.lora_rank < adapter_rank(model):
        raise UserError(f"{server.url}: {model} is a LoRA adapter of rank {adapter_rank(model)}, the vLLM server takes "
                        f"ranks up to {server.lora_rank}; set engine.lora_rank={adapter_rank(model)}")


@clock.spending(clock.LOAD)
def load(server: Server, model: Path) -> Server:
    """Put the folder's weights, or its LoRA adapter, into the server: what asks for samples of them from now on.

    Raises UserError where they cannot fit.
    """
    fits(server, model)
    base = adapter_base(model)
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
                            f"--worker-extension-cls {service.EXTENSION} and --middleware {service.MIDDLEWARE}")
        if status != 200 or answer.get("success") is False:
            raise RuntimeError(f"{server.url}/{path} answered {status} for the weights of {model}: {answer}")
    return replace(server, load=answer["load"]) if server.ours else server


def ask(server: Server, requests: list[Request], decode: Callable[..., str], connections: set,
        silence: float) -> Iterator[tuple[int, Answer]]:
    """(index, answer) of each request as it comes.

    Raises OSError when the connection is lost or a server of ours has given no sign of life for `silence` seconds, and
    UserError when others have loaded weights meanwhile. The open connection is in `connections` meanwhile: who closes
    it there ends the call, and the requests with it.
    """
    if not server.ours:
        for index, request in enumerate(requests):
            yield index, _ask_openai(server, request, decode)
        return
    address = urlsplit(server.url)
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    connection = kind(address.netloc, timeout=silence)
    connections.add(connection)
    try:
        head = {"load": server.load, "beat": silence / _BEATS}
        body = "\n".join([json.dumps(head), *(json.dumps(_parameters(request)) for request in requests)])
        connection.request("POST", f"{address.path}/policy/sample", body, {"Authorization": f"Bearer {server.key}"})
        response = connection.getresponse()
        if response.status == _OTHER_LOAD:
            raise _other_load(server, json.loads(response.read()))
        if response.status != 200:
            raise ConnectionError(f"{server.url}/policy/sample answered {response.status}: {response.read(500)!r}")
        yield from _answers(server, requests, response, decode)
    except TimeoutError:
        raise ConnectionError(f"{server.url}: no sign of life for {silence:g} s") from None
    except http.client.HTTPException as error:
        raise ConnectionError(f"{server.url}: {type(error).__name__}: {error}") from None
    finally:
        connections.discard(connection)
        connection.close()


def _answers(server: Server, requests: list[Request], lines: Iterable[bytes],
             decode: Callable[..., str]) -> Iterator[tuple[int, Answer]]:
    left = len(requests)
    for line in lines:
        found = json.loads(line) if line.strip() else []  # an empty line: it lives
        if isinstance(found, dict):
            raise _other_load(server, found)
        if found:
            yield found[0], _answer(found[1], requests[found[0]], decode)
            left -= 1
    if left:
        raise ConnectionError(f"{server.url}: the connection ended with {left} of {len(requests)} answers missing")


def _other_load(server: Server, now: dict[str, Any]) -> Exception:
    """`now` names the last loading; none at all: the server has been started anew, so what it had is lost."""
    if not now["load"]:
        return ConnectionError(f"{server.url}: the vLLM server was started anew")
    return UserError(f"engine.url: another run loaded weights into the vLLM server at {server.url} while this one was "
                     f"sampling from it; give each run a server of its own, or run them one after the other")


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
        if reason == _ABORTED:
            raise Stopping("the vLLM server gave up what it was sampling: it is being stopped")
        ids, reason = finished(token_ids, reason, request.stop_ids)
        kept = None if logprobs is None else tuple(logprobs)
        samples.append(Sample(ids, reason, decode(ids), request.seed + j, kept))
    return Answer(tuple(samples))


def _ask_openai(server: Server, request: Request, decode: Callable[..., str]) -> Answer:
    body = {
        **_parameters(request),
        "model": service.SERVED,
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
    if _differing(was, now):  # maybe in words alone: a published folder, and one that transformers of today has written
        from transformers import AutoConfig

        was, now = (AutoConfig.from_pretrained(folder).to_dict() for folder in (served, model))
    if differ := _differing(was, now):
        found = ", ".join(f"{k} {was.get(k)!r} there, {now.get(k)!r} here" for k in differ)
        raise UserError(f"{url}: the vLLM server runs another architecture than {model / FACTS} ({found}); "
                        f"start it anew with this model")


def _differing(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [k for k in sorted({*was, *now} - NOT_ARCHITECTURE) if was.get(k) != now.get(k)]


def healthy(url: str) -> bool:
    """Does the server say it can serve? Raises ConnectionError where nobody answers."""
    return call(f"{url}/health", "", seconds=_LOOK_SECONDS)[0] == 200


def call(url: str, key: str, data: dict[str, Any] | None = None,
         seconds: float = _ANSWER_SECONDS) -> tuple[int, dict[str, Any]]:
    """(status, JSON answer) of one GET, or POST with `data`. Raises ConnectionError where nobody answers."""
    body = None if data is None else json.dumps(data).encode()
    try:
        status, text = web.fetch(url, seconds, key, body)
        if status >= 400:
            return status, {"error": _message(text.decode(errors="replace"))}
        found = json.loads(text) if text else {}
        if not isinstance(found, dict):
            raise ValueError(f"it answers {text[:100]!r}")
        return status, found
    except (OSError, ValueError) as error:
        raise ConnectionError(f"{url}: no vLLM server answers there ({error})") from None


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:500]
