"""Measure the generate stage against one plain `LLM.generate`, transformers, and its own targets; ratios in one call.

    python scripts/bench_generation.py            2,000 prompts x 4 samples on a 6M-parameter model, about 10 minutes
    python scripts/bench_generation.py --quick    300 prompts, one round, about 3 minutes

Prints a table and writes the same numbers as JSON (--json FILE). What is compared alternates within the call, because
other loads on a machine move absolute figures by up to 2x. Tokens per second leave the start of either engine out;
the time from new weights on disk to the first sample has its own rows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline import tables  # noqa: E402
from pipeline.engines.vllm import plugin  # noqa: E402
from pipeline.engines.vllm import service as vllm_service  # noqa: E402
from pipeline.records import Group, Message  # noqa: E402
from pipeline.stage import derive_seed  # noqa: E402

VOCABULARY, CONTEXT, SAMPLES, TEMPERATURE, SEED = 4096, 512, 4, 0.7, 5
PARTS = ("idle", "first", "memory", "throughput")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer prompts, one round")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="measure only these")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--prompts", type=int, help="instead of 2,000 (300 with --quick)")
    parser.add_argument("--tokens", type=int, default=48, help="most tokens per sample")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--replicas", type=int, default=1, help="servers of the service, sharing the cores")
    options = parser.parse_args()
    rounds = 1 if options.quick else 2
    number = options.prompts or (300 if options.quick else 2000)
    with tempfile.TemporaryDirectory(prefix="bench_generation_") as name:
        world = World(Path(name), number, options.tokens, options.dtype, options.replicas)
        found: dict[str, Any] = {"prompts": number, "samples": SAMPLES, "max_tokens": options.tokens,
                                 "dtype": options.dtype, "replicas": options.replicas,
                                 "cores": len(os.sched_getaffinity(0))}
        with world.service() as (service, cold):
            measures = {
                "idle": lambda: idle(service, 10 if options.quick else 30),
                "first": lambda: first_token(service, world, cold),
                "memory": lambda: memory(service, world, (200, 2000) if options.quick else (1000, 20_000)),
                "throughput": lambda: throughput(service, world, rounds),
            }
            show(found)
            for part in options.only:
                part_found = measures[part]()
                show(part_found)
                found |= part_found
                if options.json:
                    options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def show(found: dict[str, Any]) -> None:
    for key, value in found.items():
        print(f"{key:<44} {value:,.3f}" if isinstance(value, float) else f"{key:<44} {value}", flush=True)


class World:
    """A 6M-parameter model with random weights, a second one of the same shape, prompts of 20 to 80 tokens."""

    def __init__(self, folder: Path, number: int, tokens: int, dtype: str, replicas: int = 1) -> None:
        self.folder, self.number, self.tokens, self.dtype, self.replicas = folder, number, tokens, dtype, replicas
        self.model, self.other = folder / "model", folder / "other"
        make_model(self.model, seed=0)
        make_model(self.other, seed=1)
        self.steps = 0

    def prompts(self, number: int, short: bool = False) -> Path:
        table = self.folder / f"prompts-{number}-{short}"
        if not table.exists():
            tables.write(table, (
                Group(f"p{i}", (Message("user", f"question {i}"),), prompt_ids=prompt_ids(i, short))
                for i in range(number)))
        return table

    @contextlib.contextmanager
    def service(self) -> Iterator[tuple[vllm_service.Service, float]]:
        """The server of a whole run and the seconds it took until its first sample was on disk."""
        settings = vllm_service.Settings(dtype=self.dtype, replicas=self.replicas)
        started = time.monotonic()
        service = vllm_service.start(self.model, self.folder / "vllm.log", settings)
        try:
            service.wait_ready(300)
            self.stage(service, self.model, self.prompts(1), tokens=1)
            yield service, time.monotonic() - started
        finally:
            service.stop()

    def stage(self, service: vllm_service.Service | None, model: Path, prompts: Path, *, tokens: int = 0,
              n: int = SAMPLES, part_size: int = 256, wait: bool = True) -> Any:
        """Run the generate stage in a process of its own, as a run does; its facts, or the process and its table."""
        self.steps += 1
        work = self.folder / f"work-{self.steps}"
        work.mkdir()
        engine = {"module": f"pipeline.engines.{'vllm' if service else 'transformers'}", "dtype": self.dtype}
        spec = {
            "stage": "generate", "run": "bench", "step": "generate", "seed": SEED, "work": str(work),
            "settings": {"engine": engine["module"], "dtype": self.dtype, "n": n, "temperatures": [TEMPERATURE],
                         "max_tokens": tokens or self.tokens},
            "runtime": {"engine": engine, "part_size": part_size},
            "inputs": {"model": [str(model)], "prompts": [str(prompts)]},
            "digests": {"model": ["d"], "prompts": ["p"]},
            "metrics": str(work / "metrics.jsonl"), "progress": str(work / "progress.json"),
        }
        (work / "step.json").write_text(json.dumps(spec))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **(service.environment if service else {})}
        command = [sys.executable, "-m", "pipeline.worker", str(work / "step.json")]
        process = subprocess.Popen(command, env=environment)
        if not wait:
            return process, work / "out" / "groups"
        if process.wait() != 0:
            raise RuntimeError(f"the stage ended with code {process.returncode}")
        return json.loads((work / "result.json").read_text())


def throughput(service: vllm_service.Service, world: World, rounds: int) -> dict[str, float]:
    """Tokens per second of the stage, of one plain call over the same prompts, and of the transformers engine.

    And tokens per second of CPU time, all processes together, which other loads on the machine disturb less.
    """
    prompts, few = world.prompts(world.number), world.prompts(max(world.number // 8, 64))
    rates: dict[str, list[tuple[float, float]]] = {"stage": [], "plain": [], "plain_unseeded": [], "transformers": []}
    with plain(world, prompts) as (ask, process):
        ask("seeded 32")  # one short call first: both engines are warm
        for _ in range(rounds):
            for name, act in {
                "plain": lambda: ask("seeded"),
                "stage": lambda: rate(world.stage(service, world.model, prompts)["counts"]),
                "plain_unseeded": lambda: ask("unseeded"),
                "transformers": lambda: rate(world.stage(None, world.model, few)["counts"]),
            }.items():
                before = cpu_seconds([process, *service.processes])
                tokens, per_second = act()
                spent = cpu_seconds([process, *service.processes]) - before
                rates[name].append((per_second, tokens / spent))
    found = {f"tokens_per_second_{name}": statistics.median(rate for rate, _ in made) for name, made in rates.items()}
    for other in ("plain", "plain_unseeded", "transformers"):
        for i, suffix in enumerate(("", "_by_cpu_time")):
            found[f"stage_over_{other}{suffix}"] = statistics.median(
                mine[i] / its[i] for mine, its in zip(rates["stage"], rates[other], strict=True))
    return found


def rate(counts: dict[str, float]) -> tuple[float, float]:
    return counts["tokens"], counts["tokens"] / counts["seconds_sampling"]


def cpu_seconds(roots: list[subprocess.Popen]) -> float:
    """Of these processes, all they started, and every child of ours that has ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = [psutil.Process(root.pid) for root in roots]
    running = sum(sum(p.cpu_times()[:2]) for root in found for p in (root, *root.children(recursive=True)))
    return running + ended.ru_utime + ended.ru_stime


@contextlib.contextmanager
def plain(world: World, prompts: Path) -> Iterator[Any]:
    """(ask, process): ask("seeded" | "unseeded" [first N]) -> (tokens, tokens per second) of one LLM.generate."""
    job = {"model": str(world.model), "prompts": str(prompts), "tokens": world.tokens, "dtype": world.dtype,
           "context": CONTEXT, "n": SAMPLES, "temperature": TEMPERATURE, "seed": SEED}
    (world.folder / "plain.json").write_text(json.dumps(job))
    command = [sys.executable, str(ROOT / "scripts" / "generation_plain.py"), str(world.folder / "plain.json")]
    log = (world.folder / "plain.log").open("w")
    environment = {**os.environ, **vllm_service.engine_environment(vllm_service.Settings())}
    environment.pop(plugin.PATIENT, None)  # vLLM as it comes
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                               env=environment)
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def ask(line: str) -> tuple[float, float]:
        stdin.write(line + "\n")
        stdin.flush()
        for answer in stdout:
            if answer.startswith("rate "):
                return float(answer.split()[1]), float(answer.split()[2])
        raise RuntimeError((world.folder / "plain.log").read_text()[-3000:])

    try:
        yield ask, process
    finally:
        stdin.close()
        process.wait(60)


def first_token(service: vllm_service.Service, world: World, cold: float) -> dict[str, float]:
    """Seconds from "the new weights are on disk" to the first committed sample, the stage's own start included."""
    prompts = world.prompts(64)
    took = []
    for model in (world.other, world.model, world.other):
        began = time.monotonic()
        process, out = world.stage(service, model, prompts, tokens=1, part_size=1, wait=False)
        while not tables.parts(out):
            if process.poll() not in (None, 0):
                raise RuntimeError("the stage failed")
            time.sleep(0.005)
        took.append(time.monotonic() - began)
        process.wait()
    return {"seconds_to_first_sample": statistics.median(took), "seconds_to_first_sample_worst": max(took),
            "seconds_cold_start": cold}


def memory(service: vllm_service.Service, world: World, sizes: tuple[int, int]) -> dict[str, float]:
    """Peak resident memory of the stage's process, by number of short prompts."""
    peaks = {}
    for size in sizes:
        facts = world.stage(service, world.model, world.prompts(size, short=True), tokens=2, n=1)
        peaks[f"peak_memory_mb_{size}_prompts"] = facts["peak_memory_mb"]
    small, large = peaks.values()
    return peaks | {"peak_memory_ratio": large / small}


def idle(service: vllm_service.Service, seconds: float) -> dict[str, float]:
    """Share of one core and memory (shared pages counted once) of the server's processes while nobody asks."""
    roots = [psutil.Process(process.pid) for process in service.processes]
    tree = [process for root in roots for process in (root, *root.children(recursive=True))]
    time.sleep(3)
    before = sum(sum(p.cpu_times()[:2]) for p in tree)
    time.sleep(seconds)
    after = sum(sum(p.cpu_times()[:2]) for p in tree)
    return {"idle_share_of_one_core": (after - before) / seconds, "service_processes": len(tree),
            "service_memory_gb": sum(p.memory_full_info().pss for p in tree) / 1e9}


def make_model(folder: Path, seed: int) -> None:
    """6 layers of 256, vocabulary 4,096, tied embeddings: 6.1M weights."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    texts = (path.read_text() for path in sorted((ROOT / "pipeline").rglob("*.py")))
    inner.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=CONTEXT, tie_word_embeddings=True, initializer_range=0.1,
        bos_token_id=1, eos_token_id=2, pad_token_id=0))
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)


def prompt_ids(index: int, short: bool) -> tuple[int, ...]:
    length = 8 if short else 20 + index * 37 % 61
    return (1, *(3 + derive_seed(0, index, k) % 4000 for k in range(length)))


if __name__ == "__main__":
    sys.exit(main())
