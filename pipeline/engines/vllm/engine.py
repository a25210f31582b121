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
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pipeline import files
from pipeline.engines.engine import Answer, Backend, Request, model_facts, overlong, probe, text_decoder
from pipeline.engines.vllm import client, served
from pipeline.engines.vllm import service as vllm_service
from pipeline.engines.vllm.client import Server
from pipeline.engines.vllm.dispatch import Dispatcher, Lane, ServerLost
from pipeline.engines.vllm.kept import KEEPING
from pipeline.engines.vllm.servers import Keepers, servers_at
from pipeline.engines.vllm.service import Service, Settings
from pipeline.errors import UserError

__all__ = ["Settings", "check_service", "findings", "open_engine", "start_service"]

ProbeLogps = dict[tuple[int, ...], list[float]]  # the probe's completion -> transformers' log-probs of its tokens, nats
_BATCHES = 8  # calls that together fill a server
_PAUSE = 0.5  # seconds between two tries at a probe
_AT_START = 5.0  # times the gap of a run's first weights that later ones may have: a family's rounding hardly changes
_TRIES = 3  # at getting a server back that is lost again while it gets its weights


def start_service(model: Path, log: Path, settings: Settings) -> Service | None:
    """Start the servers that a whole run uses; None where `settings.url` names some that already run.

    Those are looked at now: UserError for a wrong address, key or model name, or a model that they cannot take.
    """
    if settings.url is None:
        return vllm_service.start(model, log, settings)
    for server in servers_at(settings.url):
        client.fits(server, model)
    return None


def refuse_model(model: Path, settings: Settings) -> None:
    """Raises UserError for a model of a family that the servers to be started do not serve."""
    if settings.url is None and vllm_service.builds():
        served.refuse_unserved(model)


def check_service(settings: Settings) -> list[str]:
    """What is wrong with the servers that `settings.url` names, before there is a model. Loads nothing."""
    try:
        servers_at(settings.url or "")
    except UserError as error:
        return error.problems
    return []


@contextlib.contextmanager
def open_engine(model: Path, settings: Settings, log: Path) -> Iterator[Engine]:
    """Servers that serve `model`'s weights. Raises UserError for a wrong url, key or served model."""
    with contextlib.ExitStack() as stack:
        if not os.environ.get(vllm_service.URL) and not settings.url:
            service = vllm_service.start(model, log, settings)
            stack.callback(service.stop)
            service.wait_ready(settings.start_timeout)
            keepers = Keepers(service.environment, settings)
        else:
            keepers = Keepers(os.environ, settings)
        found = keepers.connect()
        pool = stack.enter_context(ThreadPoolExecutor(len(found)))
        servers = tuple(pool.map(lambda server: client.load(server, model), found))
        # the probe may take seconds (a large model, an import): sampling starts meanwhile
        known: ProbeLogps = {}
        recovered: set[str] = set()
        gaps = pool.submit(lambda: max(_first_gap(server, model, settings, known, recovered) for server in servers))
        context = min(server.context_length for server in servers)
        yield Engine(servers, keepers, model, settings, context, {}, gaps, known, recovered, keepers.first_gap)


def _first_gap(server: Server, model: Path, settings: Settings, known: ProbeLogps, recovered: set[str]) -> float:
    """`gap`; 0 for a server that was lost meanwhile, which is looked at again before it serves (`Engine._recover`).

    Raises RuntimeError where nobody answers and nobody misses it: what it serves is not known.
    """
    deadline = time.monotonic() + settings.silence_timeout
    while True:
        try:
            return gap(server, model, settings, known)
        except OSError as error:
            if server.url not in recovered and time.monotonic() > deadline:
                raise RuntimeError(f"the vLLM server does not answer the probe of its weights, so that nobody knows "
                                   f"which it serves ({error}); engine.silence_timeout is "
                                   f"{settings.silence_timeout:g} s") from None
        except UserError:  # another load: our own after a loss, or somebody else's
            if server.url not in recovered:
                raise
        if server.url in recovered:
            return 0.0
        time.sleep(_PAUSE)


def findings(settings: Settings) -> tuple[list[tuple[str, str]], list[str]]:
    """What `align doctor` says of this engine: (what, found) rows, and problems. Starts and imports nothing heavy."""
    distributions, rows, problems = vllm_service.builds(), [], []
    if distributions:
        made = vllm_service.engine_environment(settings)
        gpus = vllm_service.gpus()
        where = f"GPU {', '.join(gpus)}" if gpus else f"CPU cores {made['VLLM_CPU_OMP_THREADS_BIND']}"
        rows.append(("engine", f"{', '.join(distributions)}, would use {where}"))
    else:
        rows.append(("engine", "transformers (vLLM is not installed): same records"))
    ray = _version("ray")
    rows.append(("engine=vllm_ray", f"ray {ray}" if ray and distributions else "needs ray and vLLM"))
    for url in vllm_service.split(os.environ.get(vllm_service.URL) or settings.url or ""):
        try:
            server = client.connect(url, os.environ.get(vllm_service.KEY, ""))
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


@dataclass(frozen=True)
class Engine:
    """Open servers; see pipeline.engines.engine.Engine."""

    servers: tuple[Server, ...]
    keepers: Keepers
    model: Path
    settings: Settings
    context_length: int
    facts: dict[str, float]
    gaps: Future[float]
    known: ProbeLogps
    recovered: set[str]  # addresses of servers that were lost: their weights were loaded a second time
    first_gap: Path | None = None  # where the gap of the run's first weights stands; None: of nothing that lasts

    def sample(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Raises RuntimeError when all servers are lost or one serves other weights, UserError when another run loaded
        weights into one meanwhile."""
        lanes = [self._lane(server) for server in self.servers]
        ask = functools.partial(_ask, decode=text_decoder(self.model), context=self.context_length,
                                silence=self.settings.silence_timeout)
        dispatcher = Dispatcher(lanes, ask, self._recover)
        invariant = float(os.environ.get("VLLM_BATCH_INVARIANT") == "1")  # 1: a seed gives its sample in every batch
        self.facts.update(replicas=len(lanes), server_losses=0, batch_invariant=invariant)
        for answer in dispatcher.answers(requests):
            if "logprob_gap" not in self.facts:  # nothing leaves before the weights are known to be the right ones
                self.facts["logprob_gap"] = self.gaps.result()
                self._check(self.facts["logprob_gap"])
            yield answer
        self.facts.update(server_losses=dispatcher.losses, servers_gone=dispatcher.gone)

    def _lane(self, server: Server) -> Lane:
        limit = self.settings.concurrency or 2 * server.max_sequences
        return Lane(server, limit, max(1, limit // _BATCHES) if server.ours else 1)

    def _recover(self, server: Server, why: OSError | None, over: threading.Event) -> Server:
        """A server that comes back has the weights it was started with: give it the policy's, and look."""
        print(f"the vLLM server at {server.url} was lost ({why}); waiting for it to serve again. Its last lines:\n"
              f"{self.keepers.tail(server.url, 10)}", flush=True)
        if isinstance(why, client.Stopping):
            self.keepers.wait_for_end(server.url, over)
        for _ in range(_TRIES):
            try:
                self.recovered.add(server.url)
                back = client.load(self.keepers.wait(server.url, over), self.model)
                self._check(gap(back, self.model, self.settings, self.known))
            except ConnectionError as error:
                why = error
            else:
                print(f"the vLLM server at {server.url} serves again", flush=True)
                return back
        raise ServerLost(f"the vLLM server at {server.url} is lost ({why})\n{self.keepers.tail(server.url, 30)}")

    def _check(self, found: float) -> None:
        limit = allowed(self.first_gap, self.settings)
        if not found <= limit:
            raise UserError(
                f"the vLLM server does not serve the weights of {self.model}: its log-probs differ from transformers' "
                f"by {found:.4f} nats per token, allowed are {limit:.4g} (engine.probe_tolerance). "
                "Either it kept other weights, or vLLM computes this family differently: take engine=transformers")
        if self.first_gap is not None and not self.first_gap.exists():
            files.write_sealed(self.first_gap, {self.settings.dtype: found})


def allowed(first: Path | None, settings: Settings) -> float:
    """The largest gap that is rounding, nats per token: `_AT_START` times that of the run's first weights, within a
    quarter of the tolerance and all of it; engine.probe_tolerance itself where it is given.
    """
    known = (files.read_sealed(first) if first is not None else None) or {}
    if settings.probe_tolerance is not None or settings.dtype not in known:
        return settings.tolerance
    return min(settings.tolerance, max(settings.tolerance / 4, _AT_START * known[settings.dtype]))


def gap(server: Server, model: Path, settings: Settings, known: ProbeLogps) -> float:
    """Mean absolute difference, nats per token, between the server's and transformers' log-probs of a greedy probe.

    `known` keeps what transformers computes from the folder, by completion: replicas that serve alike share it.
    """
    if not settings.probe:
        return 0.0
    request = probe(model_facts(model))
    ((_, answer),) = client.ask(server, [request], lambda ids: "", set(), settings.silence_timeout)
    if answer.refused:
        raise RuntimeError(f"the vLLM server at {server.url} refuses the probe of its weights: {answer.refused}")
    (sample,) = answer.samples
    assert sample.logprobs is not None
    ids = sample.token_ids
    if ids not in known:
        known[ids] = _transformers_logps(server, model, request.prompt_ids, ids, settings.dtype)
    trainers = known[ids]
    differences = [abs(a - b) for a, b in zip(trainers, sample.logprobs, strict=True)]
    return sum(differences) / len(differences)


def _transformers_logps(server: Server, model: Path, prompt: tuple[int, ...], completion: tuple[int, ...],
                        dtype: str) -> list[float]:
    """By a server of ours on this machine, which has transformers loaded already; else here."""
    if server.ours and urlsplit(server.url).hostname == "127.0.0.1":
        wanted = {"model": str(model.resolve()), "prompt": prompt, "completion": completion, "dtype": dtype}
        status, answer = client.call(f"{server.url}/policy/transformers_logps", server.key, wanted)
        if status != 200:
            raise RuntimeError(f"{server.url}: transformers cannot compute log-probs of {model}: {answer}")
        return list(answer["logps"])
    from pipeline.engines.transformers.sampling import completion_logps

    return completion_logps(model, list(prompt), list(completion), dtype)


def _ask(server: Server, requests: list[Request], connections: set, decode: Callable[..., str], context: int,
         silence: float) -> Iterator[tuple[int, Answer]]:
    """Ask for what fits; refuse the rest here, where the lengths are known."""
    fitting = []
    for index, request in enumerate(requests):
        if why := overlong(request, context):
            yield index, Answer(refused=why)
        else:
            fitting.append(index)
    if fitting:
        for k, answer in client.ask(server, [requests[i] for i in fitting], decode, connections, silence):
            yield fitting[k], answer


BACKEND = Backend(Settings, open_engine, start_service, check_service, findings, refuse_model,
                  shares_device=lambda s: s.sleep_level > 0, keeping=KEEPING)
