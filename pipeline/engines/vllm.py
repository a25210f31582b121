"""Sampling by a vLLM server over HTTP: token ids in, token ids out, weights swapped in place.

Where a server comes from, in this order: the run's own service (ALIGNLOOP_ENGINE_URL and ALIGNLOOP_ENGINE_KEY in the
environment), `settings.url`, else one started here for the stage's life. Opening an engine loads the model folder's
weights into the server and compares its log-probs with transformers': a server that went on serving old weights is
a known and otherwise silent failure.

Determinism: every sample has its own seed, so samples do not depend on shards or order. vLLM's numerics may still
differ between batch shapes in the last bits, which a sampled token can hang on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.engines import vllm_service
from pipeline.engines.engine import FACTS, Answer, Request, Sample, finished, model_facts, text_decoder
from pipeline.engines.vllm_service import Service, Settings
from pipeline.records import UserError

if TYPE_CHECKING:
    import aiohttp

__all__ = ["Settings", "open_engine", "start_service"]

_ATTEMPTS = 4
_PROBE_TOKENS = 16
_NOT_ARCHITECTURE = {"transformers_version", "torch_dtype", "dtype", "_name_or_path", "use_cache"}


def start_service(model: Path, log: Path, settings: Settings) -> Service | None:
    """Start the server that a whole run uses; None where `settings.url` names one that already runs."""
    return None if settings.url else vllm_service.start(model, log, settings)


@contextlib.contextmanager
def open_engine(model: Path, settings: Settings, log: Path) -> Iterator[Engine]:
    """A server that serves `model`'s weights. Raises UserError for a wrong url, key or served model."""
    url = os.environ.get(vllm_service.URL) or settings.url
    service = None
    if url is None:
        service = vllm_service.start(model, log, settings)
        url = service.url
    key = service.key if service else os.environ.get(vllm_service.KEY, "")
    try:
        if service:
            service.wait_ready(settings.start_timeout)
        try:
            context = _load(url, key, model)
        except ConnectionError as error:
            if settings.url:  # the user's own server; one of the run's that is gone is no mistake of theirs
                raise UserError(f"engine.url: {error}") from None
            raise
        with ThreadPoolExecutor(1) as pool:  # transformers takes seconds to import: sampling starts meanwhile
            yield Engine(url, key, model, settings, context, {}, pool.submit(_gap, url, key, model, settings))
    finally:
        if service:
            service.stop()


@dataclass(frozen=True)
class Engine:
    """An open connection; see pipeline.engines.engine.Engine."""

    url: str
    key: str
    model: Path
    settings: Settings
    context_length: int
    facts: dict[str, float]
    gap: Future[float]

    def sample(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Keeps `settings.concurrency` requests in flight. Raises RuntimeError when the server is lost or is stale."""
        decode = text_decoder(self.model)
        pending: deque[asyncio.Task[Answer]] = deque()
        with asyncio.Runner() as runner:
            session = runner.run(_session(self.key))
            try:
                for request in requests:
                    pending.append(runner.get_loop().create_task(_ask(session, self.url, request, decode)))
                    if len(pending) >= self.settings.concurrency:
                        yield self._checked(runner.run(_result(pending.popleft())))
                while pending:
                    yield self._checked(runner.run(_result(pending.popleft())))
            finally:
                for task in pending:
                    task.cancel()
                runner.run(session.close())

    def _checked(self, answer: Answer) -> Answer:
        """Nothing leaves before the weights are known to be the right ones."""
        gap = self.gap.result()
        self.facts["logprob_gap"] = gap
        if not gap <= self.settings.tolerance:
            raise RuntimeError(
                f"the vLLM server does not serve the weights of {self.model}: its log-probs differ from transformers' "
                f"by {gap:.4f} nats per token, allowed are {self.settings.tolerance} (engine.probe_tolerance)")
        return answer


async def _session(key: str) -> aiohttp.ClientSession:
    import aiohttp

    return aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {key}"},
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None),
    )


async def _result(task: asyncio.Task[Answer]) -> Answer:
    return await task


async def _ask(session: aiohttp.ClientSession, url: str, request: Request, decode: Callable[..., str]) -> Answer:
    """One request, asked again when the connection breaks: its seed makes the second answer the first one."""
    import aiohttp

    for attempt in range(1, _ATTEMPTS + 1):
        try:
            async with session.post(f"{url}/v1/completions", json=_body(request)) as response:
                status, text = response.status, await response.text()
            break
        except aiohttp.ClientError as error:
            if attempt == _ATTEMPTS:
                raise RuntimeError(f"the vLLM server at {url} is lost ({error}); its log says why") from error
            await asyncio.sleep(0.2 * attempt)
    if status == 400:
        return Answer(refused=_message(text))
    if status != 200:
        raise RuntimeError(f"the vLLM server at {url} answered {status}: {_message(text)}")
    choices = sorted(json.loads(text)["choices"], key=lambda choice: choice["index"])
    return Answer(tuple(_sample(choice, request, decode) for choice in choices))


def _body(request: Request) -> dict[str, Any]:
    return {
        "model": vllm_service.SERVED,
        "prompt": request.prompt_ids,
        "n": request.n,
        "seed": request.seed,  # vLLM gives sample j of n the seed + j
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "max_tokens": request.max_tokens,
        "stop_token_ids": request.stop_ids,
        "ignore_eos": True,  # the stop ids are exactly ours, none of the server's own
        "return_token_ids": True,
    }


def _sample(choice: dict[str, Any], request: Request, decode: Callable[..., str]) -> Sample:
    ids, reason = finished(choice["token_ids"], choice["finish_reason"], request.stop_ids)
    return Sample(ids, reason, decode(ids), request.seed + choice["index"])


def _load(url: str, key: str, model: Path) -> int:
    """Put the folder's weights into the server; returns its context length in tokens."""
    status, answer = _http(f"{url}/v1/models", key)
    if status in (401, 403):
        raise UserError(f"{url}: the vLLM server refuses the key in {vllm_service.KEY}")
    served = [m for m in answer.get("data", []) if m.get("id") == vllm_service.SERVED]
    if status != 200 or not served:
        raise UserError(f"{url}: no model named {vllm_service.SERVED!r} is served there; start vLLM with "
                        f"--served-model-name {vllm_service.SERVED} and VLLM_SERVER_DEV_MODE=1")
    _same_architecture(Path(served[0].get("root", "")), model, url)
    body = {"method": "load_policy", "args": [str(model.resolve())]}
    for path, data in (("collective_rpc", body), ("reset_prefix_cache", {})):
        status, answer = _http(f"{url}/{path}", key, data)
        if status == 404:
            raise UserError(f"{url}: the vLLM server cannot swap weights; start it with VLLM_SERVER_DEV_MODE=1 and "
                            f"--worker-extension-cls {vllm_service.EXTENSION}")
        if status != 200 or answer.get("success") is False:
            raise RuntimeError(f"{url}/{path} answered {status} for the weights of {model}: {answer}")
    return int(served[0]["max_model_len"])


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


def _gap(url: str, key: str, model: Path, settings: Settings) -> float:
    """Mean absolute difference, nats per token, between the server's and transformers' log-probs of a greedy probe."""
    if not settings.probe:
        return 0.0
    facts = model_facts(model)
    prompt = [(7919 * i + 11) % facts.vocab_size for i in range(_PROBE_TOKENS)]  # spread over the vocabulary
    body = {"model": vllm_service.SERVED, "prompt": prompt, "temperature": 0.0, "max_tokens": _PROBE_TOKENS,
            "ignore_eos": True, "logprobs": 1, "return_token_ids": True}
    status, answer = _http(f"{url}/v1/completions", key, body)
    if status != 200:
        raise RuntimeError(f"the vLLM server at {url} answered {status} to the probe of its weights: {answer}")
    choice = answer["choices"][0]
    from pipeline.engines.transformers_sampling import completion_logps

    trainers = completion_logps(model, prompt, choice["token_ids"], settings.dtype)
    differences = [abs(a - b) for a, b in zip(trainers, choice["logprobs"]["token_logprobs"], strict=True)]
    return sum(differences) / len(differences)


def _http(url: str, key: str, data: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    body = None if data is None else json.dumps(data).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=600) as response:
            text = response.read()
            return response.status, json.loads(text) if text else {}
    except urllib.error.HTTPError as error:
        return error.code, {"error": _message(error.read().decode(errors="replace"))}
    except (OSError, ValueError) as error:
        raise ConnectionError(f"{url}: no vLLM server answers there ({error})") from None


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:500]
