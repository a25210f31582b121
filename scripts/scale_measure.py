"""What the cost model of scripts/scale.py says of this machine, and what is measured: written to docs/scale.json.

    python scripts/scale_measure.py [--rounds 5]

One thread, processor seconds, sides in turn, medians: other loads hardly move them. One side gives the machine's rate,
the others are predicted with it. FLOPs are counted by torch, bytes are those of files.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from flows.memory import Shape
from scripts import bench_training as bench
from scripts import scale
from scripts.training_turns import Side, World, alternate

BASE = Shape(384, 1024, 6, 384, 384, 8192, tied=True)
SHAPES = {"base": BASE, "twice the layers": replace(BASE, layers=12),
          "1.5 times the width": Shape(576, 1536, 6, 576, 576, 8192, tied=True)}


def config(shape: Shape) -> Any:
    import transformers

    return transformers.LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.inner,
        num_hidden_layers=shape.layers, num_attention_heads=shape.query // 64, num_key_value_heads=shape.key // 64,
        max_position_embeddings=4096, tie_word_embeddings=shape.tied, eos_token_id=2, bos_token_id=1, pad_token_id=0)


def drawn(number: int, prompt: int, completions: list[int], seed: int = 0) -> list[Any]:
    """Groups of random ids with these lengths."""
    import numpy as np

    from pipeline.lm.examples import Example

    rng = np.random.default_rng(seed)

    def ids(length: int) -> Any:
        return rng.integers(3, 500, length).astype(np.int32)

    return [Example(f"g{i}", ids(prompt), tuple(map(ids, completions))) for i in range(number)]


def counted(shape: Shape, prompt: int, completions: list[int], number: int = 2) -> tuple[float, float]:
    """(FLOPs the model gives, FLOPs torch counts) of a step on so many groups: the core's forward and backward pass."""
    import torch
    import transformers
    from torch.utils.flop_counter import FlopCounterMode

    from pipeline.lm import forward, prefix

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config(shape))
    model.config._attn_implementation = "sdpa"
    prefix.prepare(model, True)
    examples = drawn(number, prompt, completions)
    with FlopCounterMode(display=False) as counter:
        forward.group_logps(model, forward.collate(examples, torch.device("cpu")), 2**27).sum().backward()
    return 3 * number * scale.forward(shape, prompt, [float(n) for n in completions]), float(counter.get_total_flops())


def steps(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Processor seconds of DPO steps of other shapes and lengths, by the rate of the base's."""
    made = {}
    for name, shape in SHAPES.items():
        world = World(folder / name.replace(" ", "-"), rounds, False, ("float32",), 1, False)
        world.folder.mkdir()
        bench.make_model(world)
        config(shape).save_pretrained(world.folder / "model")
        _save(shape, world.folder / "model")
        made[name] = world
    cases = {name: (name, (20, 120), (20, 80)) for name in SHAPES}
    cases |= {"longer completions": ("base", (150, 250), (20, 80)), "longer prompts": ("base", (20, 120), (200, 300))}
    sides, flops = {}, {}
    for case, (name, lengths, prompts) in cases.items():
        groups = bench.groups(made[name], 8 * (rounds + 1), 2, lengths, prompts)
        data = bench.write(made[name], case.replace(" ", "-"), groups)
        sides[case] = Side(made[name], case, kind="ours", data=data, precision="float32", objective=bench.DPO)
        flops[case] = [sum(3 * scale.forward(SHAPES[name], len(g["prompt"]), [len(c) for c in g["completions"]])
                           for g in groups[8 * i : 8 * i + 8]) for i in range(rounds + 1)]
    alternate(made["base"], list(sides.values()))
    per_flop = {case: [s / f for s, f in zip(side.cpu_seconds, flops[case], strict=True)][1:]
                for case, side in sides.items()}
    rate = statistics.median(per_flop["base"])
    return [{"what": f"a DPO step of 8 pairs, {case}", "unit": "processor seconds",
             "predicted": rate * statistics.median(flops[case][1:]),
             "measured": statistics.median(sides[case].cpu_seconds[1:])} for case in cases if case != "base"]


def _save(shape: Shape, folder: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config(shape)).save_pretrained(folder)


def passes(rounds: int) -> list[dict[str, Any]]:
    """Processor seconds of log-probs without gradient, by the rate of the base's."""
    import torch
    import transformers

    from pipeline.lm import forward, prefix

    torch.set_num_threads(1)
    cases = {"base": ("base", 100, [80] * 2), "twice the layers": ("twice the layers", 100, [80] * 2),
             "8 completions a prompt": ("base", 100, [80] * 8)}
    models = {name: transformers.LlamaForCausalLM(config(shape)).eval() for name, shape in SHAPES.items()}
    took: dict[str, list[float]] = {case: [] for case in cases}
    for model in models.values():
        prefix.prepare(model, True)
    for _ in range(rounds + 1):
        for case, (name, prompt, completions) in cases.items():
            batch = forward.collate(drawn(6, prompt, completions), torch.device("cpu"))
            began = time.process_time()
            with torch.no_grad():
                forward.group_logps(models[name], batch, 2**27)
            took[case].append(time.process_time() - began)
    flops = {case: 6 * scale.forward(SHAPES[name], p, [float(c) for c in cs]) for case, (name, p, cs) in cases.items()}
    rate = statistics.median(took["base"][1:]) / flops["base"]
    return [{"what": f"log-probs of 6 groups, {case}", "unit": "processor seconds", "predicted": rate * flops[case],
             "measured": statistics.median(took[case][1:])} for case in cases if case != "base"]


def selecting(folder: Path, groups: int, samples: int = 8, tokens: int = 512) -> float:
    """Processor seconds of build_groups."""
    from pipeline import columns, tables
    from pipeline.config import build
    from pipeline.records import Completion, Group, Message
    from pipeline.stage import Context, NoRuntime
    from pipeline.stages import build_groups

    def group(i: int) -> Group:
        words = " ".join(f"w{(i * 7 + j) % 997}" for j in range(tokens))
        return Group(f"g{i}", (Message("user", f"question {i}"),), tuple(
            Completion(f"{words} {j}", tuple((i + k * j) % 997 for k in range(tokens)), finish_reason="stop")
            for j in range(samples)), prompt_ids=(1, 2, 3))

    place = folder / f"rows-{groups}"
    tables.write(place / "groups", map(group, range(groups)))
    columns.write_part(place / "scores", 0, (("d", f"g{i}", [{"reward": float((i * j) % 13)} for j in range(samples)])
                                             for i in range(groups)))
    settings = build(build_groups.Settings, {"selection": {"module": "pipeline.selection.best_worst"}})
    context = Context(settings, NoRuntime(), {"groups": (place / "groups",), "scores": (place / "scores",)},
                      {"groups": ("d",), "scores": ("e",)}, place / "work", 0)
    began = time.process_time()
    build_groups.run(context)
    return time.process_time() - began


def rows(folder: Path) -> tuple[float, dict[str, Any]]:
    """(processor seconds of a completion, three times as many predicted from one size), the two in turn."""
    took: dict[int, list[float]] = {500: [], 1500: []}
    for i in range(3):
        for number, seconds in took.items():
            seconds.append(selecting(folder / f"{i}", number))
    few, many = map(statistics.median, took.values())
    return many / (1500 * 8), {"what": "build_groups, 1,500 prompts x 8 from 500", "unit": "processor seconds",
                               "predicted": 3 * few, "measured": many}


def sizes(folder: Path) -> dict[str, Any]:
    """Bytes of a checkpoint."""
    import torch
    import transformers

    from pipeline.training import checkpoint, optim
    from pipeline.training.settings import TrainerSettings

    model = transformers.LlamaForCausalLM(config(BASE))
    optimizer = optim.adamw(model, TrainerSettings())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    made = checkpoint.save(folder / "checkpoints", model, optimizer, checkpoint.Loaded(1, 1, {"x": torch.zeros(1)}), 1)
    return {"what": "a checkpoint of 14M weights", "unit": "bytes", "predicted": scale.STATE * BASE.weights,
            "measured": sum(p.stat().st_size for p in made.iterdir())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compared = []
        for what, case in {"short": (60, [70, 70]), "long": (200, [300, 300]), "8 answers": (60, [70] * 8)}.items():
            predicted, found = counted(BASE, *case)
            compared.append({"what": f"a step's FLOPs, {what} groups", "unit": "FLOPs", "predicted": predicted,
                             "measured": found})
        compared.append(sizes(folder))
        per_completion, one = rows(folder)
        compared.append(one)
        compared += passes(rounds)
        compared += steps(folder, rounds)
        machine = bench.machine(World(folder, rounds, False, ("float32",), 1, False))
    measured = {"machine": f"{machine['device']}, one thread, float32, torch {machine['torch']}",
                "date": f"{datetime.date.today()}", "seconds_per_completion": per_completion, "compared": compared}
    scale.MEASURED.write_text(json.dumps(measured, indent=1) + "\n")
    print(scale.measured_table(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
