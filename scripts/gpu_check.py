"""What the CUDA path does on this machine's card, in ten minutes: parts in processes of their own, numbers as JSON.

    python scripts/gpu_check.py --json gpu.json      everything
    python scripts/gpu_check.py --only attention     some of it
    python scripts/gpu_check.py --small              a rehearsal with very small sizes, on a CPU where there is no card

Prints one line for each number and writes all of them after each part, so that what was measured stays when a part
fails or runs out of time. The tests marked `gpu` are a part: `python -m pytest -m gpu`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SECONDS = {"machine": 60, "tests": 240, "attention": 90, "steps": 240, "adapters": 150, "reading": 90, "run": 240}
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 512}
ONE_B = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
         "num_key_value_heads": 8, "vocab_size": 128256}
EIGHT_B = {**ONE_B, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(SECONDS), nargs="+", default=list(SECONDS), help="these parts alone")
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"), help="where the numbers go")
    parser.add_argument("--small", action="store_true", help="very small sizes: does it run at all")
    parser.add_argument("--part", choices=list(SECONDS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options.small)))
        return 0
    if DEVICE.type == "cpu" and not options.small:
        from pipeline.lm import devices

        print(f"no CUDA device can be used here: {devices.why_none()}; --small rehearses on the CPU")
        return 2
    found: dict[str, Any] = {}
    for part in options.only:
        found[part] = _apart(part, options.small)
        options.json.write_text(json.dumps(found, indent=2) + "\n")
        for key, value in found[part].items():
            print(f"{part}: {key}: {value}", flush=True)
    return int(any("failed" in numbers for numbers in found.values()))


def _apart(part: str, small: bool) -> dict[str, Any]:
    """The part's numbers, made by a process of its own: what it holds of the device is free afterwards."""
    command = [sys.executable, __file__, "--part", part, *(["--small"] if small else [])]
    started = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS[part], cwd=ROOT)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {SECONDS[part]} s"}
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        return {"failed": "\n".join(done.stderr.splitlines()[-15:])}
    return {**json.loads(lines[-1]), "seconds": round(time.monotonic() - started, 1)}


def machine(small: bool) -> dict[str, Any]:
    import transformers

    found = {"torch": torch.__version__, "cuda": torch.version.cuda, "transformers": transformers.__version__}
    if DEVICE.type == "cuda":
        one = torch.cuda.get_device_properties(0)
        found |= {"device": one.name, "memory_gb": round(one.total_memory / 1e9, 1),
                  "devices": torch.cuda.device_count(), "capability": f"{one.major}.{one.minor}",
                  "sdpa_order": str(torch._C._get_sdp_priority_order())}
    return found


def tests(small: bool) -> dict[str, Any]:
    if small and DEVICE.type == "cpu":
        return {"skipped": "no card"}
    done = subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-n", "0", "-p", "no:cacheprovider",
                           "tests/training/test_devices.py", "tests/lm/test_varlen.py"], capture_output=True, text=True)
    last = (done.stdout.splitlines() or [done.stderr])[-1]
    if done.returncode != 0:
        wrong = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return {"failed": "; ".join([last, *wrong[:20]])}
    return {"passed": last}


def attention(small: bool) -> dict[str, Any]:
    """47 groups of distinct lengths, 32 heads and 8 of keys: forward and backward, and the difference from float32."""
    from pipeline.lm import packed, varlen
    from tests.lm.test_varlen import formula

    heads, few, size, scale = (4, 2, 16, 1) if small else (32, 8, 128, 16)
    groups = _groups(3 if small else 47, 8 * scale, spread=scale)
    layout = packed.pack(groups, DEVICE)
    torch.manual_seed(0)
    start = [torch.randn(1, h, layout.input_ids.shape[1], size, device=DEVICE) for h in (heads, few, few)]
    half = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32

    def once(kind: torch.dtype, kernel: Any) -> tuple[torch.Tensor, torch.Tensor]:
        query, key, value = (x.to(kind).clone().requires_grad_() for x in start)
        if kernel is None:
            out = _loop(packed, layout, query, key, value)
        else:
            out = varlen.attend(query, key, value, layout.spans, None, None, kernel)
        out.float().square().sum().backward()
        return out.detach().float(), query.grad.float()

    kernel = varlen.varlen_attn if DEVICE.type == "cuda" else formula
    exact = once(torch.float32, None)
    found: dict[str, Any] = {"tokens": layout.input_ids.shape[1], "groups": len(groups)}
    for name, way in (("loop", None), ("kernel", kernel)):
        found[f"{name}_first_s"] = _seconds(lambda way=way: once(half, way), 1)
        found[f"{name}_s"] = _seconds(lambda way=way: once(half, way), 3)
        gaps = [(a - b).abs().max() / b.abs().max() for a, b in zip(once(half, way), exact, strict=True)]
        found[f"{name}_relative_gap"] = [round(float(gap), 5) for gap in gaps]
    return found


def _loop(packed: Any, layout: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The segment loop, where the kernel would be taken."""
    serves, packed.varlen.serves = packed.varlen.serves, lambda *_: False
    try:
        return packed.attend(query, key, value, layout, None)
    finally:
        packed.varlen.serves = serves


def steps(small: bool) -> dict[str, Any]:
    """DPO steps of a model of 1 B weights: share of the peak, tokens a second, memory, kernels of a step."""
    found: dict[str, Any] = {}
    for tokens in ((256,) if small else (8192, 16384, 32768)):
        for checkpointing in (False, True):
            name = f"{tokens} tokens{', checkpointing' if checkpointing else ''}"
            try:
                found[name] = _step(SMALL if small else ONE_B, tokens, checkpointing, "none")
            except torch.OutOfMemoryError as error:
                found[name] = str(error).partition(". ")[0]
            _free()
    return found


def adapters(small: bool) -> dict[str, Any]:
    """LoRA over a frozen base of 8 B weights in bfloat16."""
    return _step(SMALL if small else EIGHT_B, 256 if small else 32768, True, "lora", rounds=1)


def _step(sizes: dict[str, int], tokens: int, checkpointing: bool, kind: str, rounds: int = 2) -> dict[str, Any]:
    from flows import memory
    from pipeline.lm import adapters as lora
    from pipeline.lm import packed
    from pipeline.lm.settings import AdapterSettings
    from pipeline.training import gradients, optim, policy, run, throughput
    from pipeline.training.settings import TrainerSettings

    model = _model(sizes, torch.bfloat16 if kind == "lora" and DEVICE.type == "cuda" else torch.float32)
    if kind == "lora":
        lora.add(model, AdapterSettings("lora"), 0)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    length = 16 if sizes is SMALL else 512
    groups = _groups(2 * max(1, tokens // (3 * length)), length)
    task = policy.PolicyTask(run.Parts.load({"module": "pipeline.objectives.dpo"}).objective, None, 0, tokens, 2**27)
    optimizer = optim.adamw(model, TrainerSettings())

    def step() -> None:
        gradients.accumulate(model, task, groups, 0, "bfloat16", tokens)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    first = _seconds(step, 1)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = _seconds(step, rounds)
    shape = throughput.shape_of(model)
    peak = throughput.peak_flops(DEVICE, "bfloat16", None)
    need = memory.training(
        memory.Shape(sizes["hidden_size"], sizes["intermediate_size"], sizes["num_hidden_layers"], sizes["hidden_size"],
                     sizes["hidden_size"] * sizes["num_key_value_heads"] // sizes["num_attention_heads"],
                     sizes["vocab_size"], True), float(sum(p.numel() for p in model.parameters() if p.ndim >= 2)),
        memory.How(DEVICE.type == "cuda", True, kind, checkpointing=checkpointing, tokens=tokens))
    unique = sum(map(packed.unique_tokens, groups))
    return {"first_s": first, "seconds": seconds, "unique_tokens_per_s": round(unique / seconds),
            "flop_utilisation": round(throughput.flops(shape, groups) / seconds / peak, 3),
            "peak_gb": round(throughput.peak_memory_gb() * 2**30 / 1e9, 2),
            "foretold_gb": round((need.total - need.context) / 1e9, 2), **_kernels(step)}


def reading(small: bool) -> dict[str, Any]:
    """Reference log-probs of a model of 1 B weights in bfloat16."""
    from pipeline.lm import logps, packed
    from pipeline.lm.settings import ModelRuntime

    tokens, length = (256, 16) if small else (32768, 512)
    model = _model(SMALL if small else ONE_B, torch.bfloat16 if DEVICE.type == "cuda" else torch.float32)
    groups, runtime = _groups(8 if small else 64, length), ModelRuntime(tokens_per_batch=tokens)
    model.requires_grad_(False)
    logps.completion_logps(model, groups[:2], runtime, "bfloat16")
    seconds = _seconds(lambda: logps.completion_logps(model, groups, runtime, "bfloat16"), 1)
    return {"unique_tokens_per_s": round(sum(map(packed.unique_tokens, groups)) / seconds)}


def run(small: bool) -> dict[str, Any]:
    """PCO with the tiny model, sampled by transformers, as a user starts it."""
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as folder:
        words = ["recipe=pco", f"hardware={DEVICE.type}", "engine=transformers", f"workspace={folder}", "run=check"]
        words += ["iterations=1", "trainer.preference.max_steps=10", "trainer.sft.max_steps=10",
                  "trainer.reward.max_steps=10", "sampling.prompts_per_iteration=32"]
        if small:
            return {"planned": _called(["plan", *words])}
        return {"ran": _called(["run", *words])}


def _called(words: list[str]) -> str:
    done = subprocess.run([sys.executable, "-m", "flows.cli", *words], capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    if done.returncode != 0:
        raise SystemExit(f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout.splitlines()[-1]


def _model(sizes: dict[str, int], dtype: torch.dtype) -> Any:
    """A Llama of random weights, made on the device, with shared prompts."""
    import transformers

    from pipeline.lm import prefix

    with DEVICE:
        config = transformers.LlamaConfig(**sizes, tie_word_embeddings=True, max_position_embeddings=8192)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        model = transformers.LlamaForCausalLM(config).train()
        torch.set_default_dtype(before)
    why = prefix.enable_prefix_sharing(model)
    assert why is None, why
    return model


def _groups(number: int, length: int, spread: int = 0) -> list[Any]:
    """Pairs with prompts and completions of about `length` tokens, with distinct lengths where there is a `spread`."""
    from pipeline.lm.examples import Example

    rng = np.random.default_rng(0)

    def ids(count: int) -> np.ndarray:
        return rng.integers(3, 500, count).astype(np.int32)

    return [Example(f"g{i}", ids(length + i * spread), (ids(length + i), ids(length + 2 * i)), ref_logps=(-9.0, -8.0))
            for i in (range(number) if spread else [0] * number)]


def _seconds(function: Callable[[], Any], times: int) -> float:
    """Mean of `times` calls, the device waited for."""
    _wait()
    started = time.perf_counter()
    for _ in range(times):
        function()
    _wait()
    return round((time.perf_counter() - started) / times, 4)


def _kernels(function: Callable[[], Any]) -> dict[str, int]:
    """Kernels that a call starts, and how often it waits for the device."""
    if DEVICE.type != "cuda":
        return {}
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        function()
        _wait()
    events = seen.key_averages()
    return {"kernels": sum(e.count for e in events if e.device_type == torch.autograd.DeviceType.CUDA),
            "waits": sum(e.count for e in events if e.key in ("cudaStreamSynchronize", "cudaDeviceSynchronize"))}


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _free() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "machine": machine, "tests": tests, "attention": attention, "steps": steps, "adapters": adapters,
    "reading": reading, "run": run}

if __name__ == "__main__":
    sys.exit(main())
