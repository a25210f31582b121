"""Measure the training core against TRL's trainers, against itself, and against this machine; ratios in one call.

    python scripts/bench_training.py                     everything, 14M-parameter Llama, about 20 minutes on two cores
    python scripts/bench_training.py --only dpo mc       some of it
    python scripts/bench_training.py --quick --no-trl    a model of 0.1M parameters, one round: does it run at all

Every compared side is a process of its own that makes one step at a time in turn with the others, because other loads
on a machine move absolute figures by up to 2x; medians and ratios are over the same rounds. With --threads 1 processor
seconds are a second measure that other loads hardly move. Prints a table, beside every figure its target, met or missed
(the exit code does not depend on it), and writes the same numbers as JSON (--json FILE). TRL is not part of the
program: `pip install trl==1.16.0` beside it, or --no-trl.

FLOPs of a step: 3 passes x (2 x body weights x unique tokens + 2 x head weights x completion tokens + 4 x layers x
width x visible token pairs); a prompt counts once per group, padding and recomputation not at all.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.training_turns import SEED, Side, World, alternate, judged, row

PARTS = ("dpo", "sft", "mc", "mc_long", "linear", "memory", "loading")
EOS = 2
DPO = {"module": "pipeline.objectives.dpo"}
CE = {"module": "pipeline.objectives.ce"}
MC = {"module": "pipeline.negatives.mc", "m": 1}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a very small model, one round")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="measure only these")
    parser.add_argument("--no-trl", action="store_true", help="leave TRL's sides out")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, help="steps per side behind the first, instead of 5 (1 with --quick)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every side")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    trl = not options.no_trl and importlib.util.find_spec("trl") is not None
    if not trl:
        print("TRL is left out" + ("" if options.no_trl else ": it is not installed"), flush=True)
    with tempfile.TemporaryDirectory(prefix="bench_training_") as name:
        rounds = options.rounds or (1 if options.quick else 5)
        world = World(Path(name), rounds, trl, tuple(options.precision), options.threads, options.quick)
        make_model(world)
        measures = {"dpo": dpo, "sft": sft, "mc": mc, "mc_long": partial(mc, prompts=(100, 200)), "linear": linear,
                    "memory": memory, "loading": loading}
        found = {part: measures[part](world) for part in PARTS if part in options.only}
    result = {"date": f"{datetime.date.today()}", "machine": machine(world), **found}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def machine(world: World) -> dict[str, Any]:
    """What was measured on, with the FLOP/s of its own matrix products in every precision used."""
    import torch

    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]
    peaks = {precision: round(peak_gflops(world, precision), 1) for precision in world.precisions}
    found = {"device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else names[0] if names else
             platform.machine(), "threads": world.threads, "torch": torch.__version__, "matmul_gflops": peaks}
    print(f"\nmachine: {found}", flush=True)
    return found


def peak_gflops(world: World, precision: str) -> float:
    """What this machine's own matrix products reach in the precision and with the threads of the sides."""
    import torch

    from pipeline.training.throughput import measured_flops

    torch.set_num_threads(world.threads)
    return measured_flops(torch.device("cuda" if torch.cuda.is_available() else "cpu"), getattr(torch, precision)) / 1e9


# ---- workloads ---------------------------------------------------------------------------------------------------


def sizes(world: World) -> dict[str, int]:
    if world.quick:
        return {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                "num_attention_heads": 2, "max_position_embeddings": 4096}
    return {"vocab_size": 8192, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6,
            "num_attention_heads": 6, "max_position_embeddings": 4096}


def make_model(world: World) -> None:
    """A random Llama and a tokenizer in which token i is the word `wi`, so that texts and ids say the same."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(SEED)
    values = sizes(world)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        **values, tie_word_embeddings=True, eos_token_id=EOS, bos_token_id=1, pad_token_id=0))
    model.save_pretrained(world.folder / "model")
    words = {"<pad>": 0, "<bos>": 1, "<eos>": EOS} | {f"w{i}": i for i in range(3, values["vocab_size"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<eos>", pad_token="<pad>").save_pretrained(
        world.folder / "model")


def groups(world: World, number: int, k: int, lengths: tuple[int, int] = (20, 120), prompts: tuple[int, int] = (20, 80)
           ) -> list[dict[str, Any]]:
    """Groups of k completions, in the order in which the training core will take them, so that both sides match."""
    from pipeline.training.loop import global_batches

    rng, vocabulary = np.random.default_rng(SEED), sizes(world)["vocab_size"]

    def ids(low: int, high: int) -> list[int]:
        return [int(i) for i in rng.integers(3, vocabulary, rng.integers(low, high + 1))]

    made = [{"id": f"g{i}", "prompt": ids(*prompts), "completions": [[*ids(*lengths), EOS] for _ in range(k)]}
            for i in range(number)]
    (order,) = global_batches([g["id"] for g in made], SEED, number, 0, 1)
    return [made[i] for i in order]


def write(world: World, name: str, made: list[dict[str, Any]]) -> str:
    path = world.folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(g) + "\n" for g in made))
    return str(path)


def write_table(world: World, name: str, made: Iterable[dict[str, Any]]) -> str:
    """The groups as a table of the program's own."""
    from pipeline import tables
    from pipeline.records import Completion, Group, Message

    path = world.folder / name
    tables.write(path, (
        Group(g["id"], (Message("user", ""),), tuple(Completion("", tuple(c)) for c in g["completions"]),
              prompt_ids=tuple(g["prompt"])) for g in made))
    return str(path)


def step_gflop(world: World, batch: list[dict[str, Any]]) -> float:
    """GFLOP of a training step on these groups: the formula above."""
    import transformers

    from pipeline.lm.examples import Example
    from pipeline.training.throughput import flops, shape_of

    model = transformers.AutoModelForCausalLM.from_pretrained(world.folder / "model")
    examples = [Example(g["id"], np.asarray(g["prompt"]), tuple(map(np.asarray, g["completions"]))) for g in batch]
    return flops(shape_of(model), examples) / 1e9


# ---- measures ----------------------------------------------------------------------------------------------------


def dpo(world: World) -> dict[str, Any]:
    """A DPO step of 8 pairs, reference precomputed, against TRL's."""
    made = groups(world, 8 * (world.rounds + 1), 2)
    data, found = write(world, "pairs", made), {}
    for precision in world.precisions:
        print(f"\nDPO, 8 pairs a step, {precision}", flush=True)
        common = {"data": data, "precision": precision, "objective": DPO}
        sides = [Side(world, "ours", kind="ours", **common),
                 Side(world, "ours, rows instead of shared prompts", kind="ours", share_prefix=False, **common)]
        if world.trl:
            sides.append(Side(world, "TRL DPOTrainer", kind="trl_dpo", **common))
        alternate(world, sides)
        ours, base = sides[0], sides[-1]
        rates = [step_gflop(world, made[8 * i:8 * i + 8]) / s for i, s in enumerate(ours.seconds)][1:]
        share = statistics.median(rates) / peak_gflops(world, precision)
        found[precision] = {s.name: row(s, base) for s in sides} | {"of_matmul_peak": share}
        targets = [judged(f"share of this machine's {precision} matrix peak, {statistics.median(rates):.1f} GFLOP/s",
                          share, least=0.4)]
        if world.trl:
            gap = max(abs(a - b) / abs(b) for a, b in zip(ours.losses[:5], base.losses[:5], strict=True))
            targets += [
                judged("groups/s over TRL's", base.median / ours.median, least=4.0),
                judged("peak memory over TRL's", ours.peak_gb / base.peak_gb, most=0.6),
                judged("relative gap of the first 5 losses", gap, most={"bfloat16": 0.02, "float32": 1e-4}[precision])]
        found[precision]["targets"] = targets
    return found


def sft(world: World) -> dict[str, Any]:
    """Tokens per second of supervised fine-tuning, 16 demonstrations a step, against TRL's with and without packing."""
    made = groups(world, 16 * (world.rounds + 1), 1)
    data, found = write(world, "demonstrations", made), {}
    for precision in world.precisions:
        print(f"\nSFT, 16 demonstrations a step (packing: 2 rows of 1,024 tokens), {precision}", flush=True)
        common = {"data": data, "precision": precision, "objective": CE, "reference": False, "batch": 16}
        sides = [Side(world, "ours", kind="ours", **common)]
        if world.trl:
            sides += [Side(world, "TRL SFTTrainer", kind="trl_sft", packing=False, **common),
                      Side(world, "TRL SFTTrainer, packing", kind="trl_sft", packing=True, **common | {"batch": 2})]
        alternate(world, sides)
        found[precision] = {s.name: row(s, sides[0]) for s in sides}
        rates = [found[precision][side.name]["tokens_per_second"] for side in sides]
        found[precision]["targets"] = [
            judged(f"tokens/s over {side.name}'s", rates[0] / rate, least=least)
            for side, rate, least in zip(sides[1:], rates[1:], (2.0, 1.2), strict=False)]
    return found


def mc(world: World, prompts: tuple[int, int] = (20, 80)) -> dict[str, Any]:
    """An MC-PO step (4 candidates scored by the live policy, 1 drawn) against a DPO step on the same prompts."""
    made = groups(world, 8 * (world.rounds + 1), 5, prompts=prompts)
    lists = write(world, f"lists-{prompts[0]}", made)
    pairs = write(world, f"pairs-of-lists-{prompts[0]}", [{**g, "completions": g["completions"][:2]} for g in made])
    found = {}
    for precision in world.precisions:
        print(f"\nMC-PO, 8 prompts of {prompts[0]} to {prompts[1]} words a step, L = 4, M = 1, {precision}", flush=True)
        sides = [Side(world, "DPO", kind="ours", data=pairs, precision=precision, objective=DPO),
                 Side(world, "MC-PO", kind="ours", data=lists, precision=precision, negatives=MC,
                      objective={"module": "pipeline.objectives.rnce"})]
        alternate(world, sides)
        # paired: both sides of a round have the same prompts
        ratio = statistics.median(b / a for a, b in zip(sides[0].seconds[1:], sides[1].seconds[1:], strict=True))
        found[precision] = {s.name: row(s, sides[0]) for s in sides} | {"ratio": ratio}
        found[precision]["targets"] = [judged("seconds of an MC-PO step over a DPO step's", ratio, most=1.5)]
    return found


def linear(world: World) -> dict[str, Any]:
    """Seconds per 1,000 tokens for groups of 256 to 4,096 tokens, 4,096 tokens a step."""
    lengths = (256, 512, 1024, 2048, 4096)
    precision, sides = world.precisions[-1], []
    print(f"\nTokens per group, 4,096 tokens a step, {precision}", flush=True)
    for tokens in lengths:
        prompt, completion = tokens // 4, 3 * tokens // 8
        batch = 4096 // tokens
        made = groups(world, batch * (world.rounds + 1), 2, (completion - 1, completion - 1), (prompt, prompt))
        sides.append(Side(world, f"{tokens} tokens", kind="ours", precision=precision, objective=DPO, batch=batch,
                          data=write(world, f"long-{tokens}", made), tokens_per_batch=4096))
    alternate(world, sides)
    found: dict[str, Any] = {}
    for tokens, side in zip(lengths, sides, strict=True):
        cost = side.median / 4.096
        found[str(tokens)] = row(side, sides[0], f"{cost:.3f} s per 1,000 tokens") | {"seconds_per_1000": cost}
    growth = found["4096"]["seconds_per_1000"] / found["256"]["seconds_per_1000"]
    return found | {"targets": [judged("cost of a token in groups of 4,096 over that in groups of 256", growth,
                                       most=1.25)]}


def memory(world: World) -> dict[str, Any]:
    """Peak memory of training on more and more groups, loaded from a table as the stages do."""
    numbers = (64, 512) if world.quick else (64, 4096, 32768)
    precision = world.precisions[-1]
    found: dict[str, Any] = {}
    print("\nPeak memory by number of groups", flush=True)
    for number in numbers:
        side = Side(world, f"{number} groups", kind="ours", precision=precision, objective=CE, reference=False,
                    table=write_table(world, f"many-{number}", groups(world, number, 1)))
        alternate(world, [side])
        found[str(number)] = row(side, side)
    growth = found[str(numbers[-1])]["peak_gb"] / found[str(numbers[0])]["peak_gb"]
    return found | {"targets": [judged(f"peak memory with {numbers[-1]:,} groups over that with {numbers[0]}", growth,
                                       most=1.05)]}


def loading(world: World) -> dict[str, Any]:
    """Time and memory of opening a Parquet table of 1,000,000 pairs and reading 10,000 of them in random order."""
    number = 20_000 if world.quick else 1_000_000
    print(f"\nLoading {number:,} pairs", flush=True)
    rng = np.random.default_rng(SEED)
    ids = rng.integers(3, 500, (4096, 3, 24)).tolist()

    def group(i: int) -> dict[str, Any]:
        prompt, *completions = ids[i % len(ids)]
        return {"id": f"g{i}", "prompt": [*prompt, 3 + i % 400], "completions": [[*c, EOS] for c in completions]}

    table = write_table(world, "table", map(group, range(number)))
    side = Side(world, "loading", kind="loading", table=table)
    found = side.answer()
    side.close()
    print(f"  opened in {found['seconds']:.1f} s, {1e6 * found['seconds_per_group']:.0f} microseconds per group read, "
          f"{found['above_gb']:.2f} GB above the process before", flush=True)
    return {"groups": number, **found, "targets": [judged("GB above the process before", found["above_gb"], most=1.0)]}


if __name__ == "__main__":
    sys.exit(main())
