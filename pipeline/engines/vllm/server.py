"""What runs inside vLLM's API server, by vLLM's own `--middleware`: the key at every door, and our own endpoints.

vLLM 0.32 asks for the API key under /v1 only: its development endpoints (/collective_rpc, /sleep ...), which change the
served weights, are open to whoever reaches the port. Here every path but /health wants the key.

    GET  /policy          facts of the server
    POST /policy/load     {"model": folder, "adapter": folder or null}: swap the weights in, forget cached prefixes;
                          answers {"load": id}, a new id each time
    POST /policy/transformers_logps    a completion's log-probs by transformers, from the folder on disk: here, because
                          importing transformers takes seconds and this process has done it
    POST /policy/sample   {"load": id, "beat": seconds} and one request per line in, one answer per line out, each as
                          soon as it is there; an empty line where nothing came for `beat` seconds

/policy/sample is vLLM's engine without the OpenAI protocol around it: no detokenising, no validation of what cannot be
wrong, many requests on one connection. That is what lets a server reach the speed of `LLM.generate`.

Weights belong to whoever loaded last. A request names the loading it relies on: 409 where another one has happened
since, and a line {"load": id of the one that is there now} where one happens while it is being answered.
"""

import asyncio
import hmac
import itertools
import json
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_OPEN = "/health"
_OTHER_LOAD = 409
_ADAPTER_IDS = itertools.count(1)  # a new number per loading: a cached adapter is never served for a later one


class Door:
    """ASGI middleware: checks the key, serves /policy, passes everything else on to vLLM."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.key = os.environ.get("VLLM_API_KEY", "")
        self.adapter: Any = None  # the LoRARequest of the policy being served
        self.load = ""  # id of the last loading, "": none yet
        self.loading = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["path"] != _OPEN and not self._has_key(scope):
            await _answer(send, 401, {"error": {"message": "wrong or missing API key"}})
        elif scope["path"] == "/sleep" and _device() == "cpu":  # vLLM 0.32 would not sleep, yet never answer again
            await _answer(send, 409, {"error": {"message": "vLLM cannot sleep on CPU"}})
        elif scope["path"].startswith("/policy"):
            await self._policy(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"").decode(errors="replace")
        return not self.key or hmac.compare_digest(given.encode(), f"Bearer {self.key}".encode())

    async def _policy(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope["app"].state
        if scope["path"] == "/policy":
            await _answer(send, 200, _facts(state))
        elif scope["path"] == "/policy/load":
            wanted = json.loads(await _body(receive))
            async with self.loading:
                await self._load(state.engine_client, wanted, send)
        elif scope["path"] == "/policy/transformers_logps":
            await _transformers_logps(json.loads(await _body(receive)), send)
        elif scope["path"] == "/policy/sample":
            head, *lines = [json.loads(line) for line in (await _body(receive)).splitlines()]
            if head["load"] != self.load:
                await _answer(send, _OTHER_LOAD, {"load": self.load})
            else:
                await self._sample(state.engine_client, lines, head["beat"], receive, send)
        else:
            await _answer(send, 404, {"error": {"message": "no such path"}})

    async def _load(self, engine: Any, wanted: dict[str, Any], send: Send) -> None:
        self.load = load = secrets.token_hex(8)  # before the first weight changes: what is in flight is refused
        try:
            await engine.collective_rpc("load_policy", args=(wanted["model"],))
            if self.adapter is not None:
                await engine.remove_lora(self.adapter.lora_int_id)
                self.adapter = None
            if wanted["adapter"]:
                from vllm.lora.request import LoRARequest

                number = next(_ADAPTER_IDS)
                adapter = LoRARequest(f"policy-{number}", number, wanted["adapter"])
                await engine.add_lora(adapter)
                self.adapter = adapter
            if not await engine.reset_prefix_cache(reset_running_requests=True):  # those of a run that came before, too
                raise RuntimeError("vLLM kept prefixes of the weights it had before")
        except Exception as error:  # a missing file, another shape: the server goes on, the asker is told
            await _answer(send, 500, {"error": {"message": f"{type(error).__name__}: {error}"}})
        else:
            await _answer(send, 200, {"load": load})

    async def _sample(self, engine: Any, lines: list[dict[str, Any]], beat: float, receive: Receive,
                      send: Send) -> None:
        """Answers as they finish, each `[index of the request, answer]`. Who goes away ends their requests."""
        load, done = self.load, asyncio.Queue[tuple[int, Any]]()
        tasks = [asyncio.create_task(_one(engine, i, line, self.adapter, done)) for i, line in enumerate(lines)]
        tasks.append(asyncio.create_task(_end_with_client(receive, asyncio.current_task())))
        headers = [(b"content-type", b"application/x-ndjson")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            left = len(lines)
            while left:
                answers = await _finished(done, beat)
                left -= len(answers)
                text = "".join(json.dumps(answer) + "\n" for answer in answers) or "\n"
                if self.load != load:
                    left, text = 0, json.dumps({"load": self.load}) + "\n"
                await send({"type": "http.response.body", "body": text.encode(), "more_body": left > 0})
        finally:
            for task in tasks:
                task.cancel()


async def _finished(done: asyncio.Queue[tuple[int, Any]], seconds: float) -> list[tuple[int, Any]]:
    """The answers that are there, waiting `seconds` for the first; none where none came. Raises what killed vLLM."""
    try:
        answers = [await asyncio.wait_for(done.get(), seconds)]
    except TimeoutError:
        return []
    while not done.empty():
        answers.append(done.get_nowait())
    for _, answer in answers:
        if isinstance(answer, BaseException):  # the engine is dead: break the connection, no answer is one
            raise answer
    return answers


async def _transformers_logps(wanted: dict[str, Any], send: Send) -> None:
    def compute() -> list[float]:
        from pipeline.engines.transformers.sampling import completion_logps

        return completion_logps(Path(wanted["model"]), wanted["prompt"], wanted["completion"], wanted["dtype"])

    await _answer(send, 200, {"logps": await asyncio.to_thread(compute)})


def _facts(state: Any) -> dict[str, Any]:
    config = state.engine_client.vllm_config
    return {"model": config.model_config.model, "vocab_size": config.model_config.get_vocab_size(),
            "context_length": config.model_config.max_model_len, "max_sequences": config.scheduler_config.max_num_seqs,
            "lora_rank": config.lora_config.max_lora_rank if config.lora_config else 0, "device": _device()}


async def _one(engine: Any, index: int, line: dict[str, Any], adapter: Any, done: asyncio.Queue) -> None:
    """The samples of one request as [[ids, finish reason, log-probs or null], ...], or why there are none, as text."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.exceptions import EngineDeadError

    prompt, logprobs = line.pop("prompt"), line.pop("logprobs")
    try:
        parameters = SamplingParams(**line, logprobs=0 if logprobs else None, ignore_eos=True, detokenize=False,
                                    output_kind=RequestOutputKind.FINAL_ONLY)
        token = {"type": "token", "prompt_token_ids": prompt}
        name = f"{id(done)}-{index}"
        async for output in engine.generate(token, parameters, name, lora_request=adapter):
            final = output
        answer: Any = [[list(o.token_ids), o.finish_reason, _logprobs(o) if logprobs else None]
                       for o in sorted(final.outputs, key=lambda o: o.index)]
    except EngineDeadError as error:
        answer = error
    except Exception as error:  # of this one request; vLLM's own kinds of refusal are many
        answer = f"{type(error).__name__}: {error}"
    await done.put((index, answer))


def _logprobs(output: Any) -> list[float]:
    """Of each sampled token, nats, under the model itself: before temperature, top-p and top-k."""
    return [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)]


async def _end_with_client(receive: Receive, handler: asyncio.Task | None) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    if handler is not None:
        handler.cancel()


async def _body(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client went away")
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def _answer(send: Send, status: int, data: dict[str, Any]) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(data).encode()})


def _device() -> str:
    from vllm.platforms import current_platform

    return str(current_platform.device_type)
