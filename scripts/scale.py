"""What a loop costs on many devices: tokens, FLOPs, bytes and seconds of each stage, by arithmetic.

    python scripts/scale.py               # the tables of docs/scale.md
    python scripts/scale.py --write       # put them there, between the marks
    python scripts/scale_measure.py       # what the model says of this machine, and what is measured: docs/scale.json

A stage takes as long as the slowest of what it does: products, its traffic to memory, between devices. What is assumed
of devices stands in `Device` and `Site`; nothing of it was measured here but the rows of one process.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from flows.memory import Shape
from flows.schedule import Need, Room, span

ROOT = Path(__file__).resolve().parent.parent
PAGE, MEASURED = ROOT / "docs" / "scale.md", ROOT / "docs" / "scale.json"
HALF, FLOAT, STATE = 2, 4, 12  # bytes of a weight: in bfloat16; in float32; in a checkpoint, with both moments
TOKEN = 12  # bytes of a sampled token in a table: id, text, compressed (flows/estimate.py)
LLAMA_8B = Shape(4096, 14336, 32, 4096, 1024, 128256, tied=False)
LLAMA_70B = Shape(8192, 28672, 80, 8192, 1024, 128256, tied=False)


@dataclass(frozen=True)
class Device:
    """An H100, by its data sheet; shares are what is reached of it, assumed."""

    flops: float = 989e12  # /s, dense bfloat16
    memory: float = 80e9
    bandwidth: float = 3.35e12  # B/s
    link: float = 450e9  # B/s to others of its node, one way
    trains: float = 0.45  # of flops
    reads: float = 0.5  # of flops, forward alone
    streams: float = 0.7  # of bandwidth


@dataclass(frozen=True)
class Site:
    """Where it runs."""

    devices: int
    per_node: int = 8
    net: float = 50e9  # B/s of each device to other nodes: one port of 400 Gb/s
    disk: float = 5e9  # B/s of the shared file system, together
    copies: float = 3e9  # B/s of each device to the memory of its node that is not pinned
    device: Device = Device()


@dataclass(frozen=True)
class Work:
    """One iteration's."""

    prompts: int = 1_000_000
    samples: int = 8
    prompt: int = 256  # tokens
    completion: int = 512
    sequences: int = 256  # at once on an engine
    micro: int = 32768  # tokens of a micro-batch (hardware=cuda)
    every: float = 300.0  # seconds between two checkpoints


@dataclass(frozen=True)
class Cost:
    """Of a stage."""

    tokens: float = 0.0
    flops: float = 0.0
    moved: float = 0.0  # bytes
    seconds: float = 0.0
    bound: str = ""  # by what
    devices: int = 0


def forward(shape: Shape, prompt: float, completions: Sequence[float]) -> float:
    """FLOPs of one pass over a group, its prompt once, the head where a completion's token is predicted: as
    pipeline/training/throughput.py counts them."""
    total = sum(completions)
    pairs = prompt**2 / 2 + sum(n * prompt + n * n / 2 for n in completions)
    head = shape.vocabulary * shape.hidden
    return 2 * (shape.layers * shape.layer * (prompt + total) + head * total) + 4 * shape.layers * shape.query * pairs


def slowest(tokens: float, flops: float, moved: float, parts: dict[str, float], devices: int) -> Cost:
    bound = max(parts, key=lambda name: parts[name])
    return Cost(tokens, flops, moved, parts[bound], bound, devices)


def split(shape: Shape, site: Site) -> int:
    """Devices of one engine: so many that half of their memory is left for keys and values."""
    return next(n for n in (1, 2, 4, 8) if shape.weights * HALF <= n * site.device.memory * 0.85 / 2)


def sampling(shape: Shape, site: Site, work: Work) -> Cost:
    """Tokens one by one, `sequences` at a time: weights and keys are read for every step of all of them."""
    one, n = site.device, split(shape, site)
    context = work.prompt + work.completion / 2
    kept = 2 * HALF * shape.layers * shape.key  # bytes of a token's keys and values
    room = n * one.memory * 0.85 - shape.weights * HALF
    at_once = min(work.sequences, int(room / (kept * (work.prompt + work.completion))))
    each = 2 * (shape.layers * shape.layer + shape.vocabulary * shape.hidden) + 4 * shape.layers * shape.query * context
    traffic = shape.weights * HALF + at_once * kept * context
    tokens = float(work.prompts * work.samples * work.completion)
    steps = tokens / at_once / (site.devices / n)
    prefill = work.prompts * forward(shape, work.prompt, [])
    of_prefill = prefill / (site.devices * one.flops * one.reads)
    exchanged = 2 * shape.layers * at_once * shape.hidden * HALF * 2 * (n - 1) / n if n > 1 else 0.0
    return slowest(tokens, tokens * each + prefill, traffic * steps * (site.devices / n), {
        "products": steps * at_once * each / (n * one.flops * one.reads) + of_prefill,
        "memory": steps * (traffic / (n * one.bandwidth * one.streams) + exchanged / one.link) + of_prefill,
    }, site.devices)


def reading(shape: Shape, site: Site, work: Work, completions: int, devices: int) -> Cost:
    """A forward pass over every group."""
    tokens = float(work.prompts * (work.prompt + completions * work.completion))
    flops = work.prompts * forward(shape, work.prompt, [work.completion] * completions)
    fits = shape.weights * HALF < site.device.memory * 0.9
    seconds = flops / (devices * site.device.flops * site.device.reads)
    return Cost(tokens, flops, 0.0, seconds, "products" if fits else "does not fit on one device", devices)


def training(shape: Shape, site: Site, work: Work, lora: bool = False) -> Cost:
    """Pairs, once each. Layers are computed twice (gradient checkpointing); FSDP2 gathers the weights for either pass
    and scatters the gradients of every micro-batch."""
    one, n = site.device, site.devices
    tokens = float(work.prompts * (work.prompt + 2 * work.completion))
    once = work.prompts * forward(shape, work.prompt, [work.completion] * 2)
    model = (2 if lora else 3) * once  # what counts as utilisation
    batches = tokens / work.micro / n
    link = one.link if n <= site.per_node else site.net
    exchanged = 0.0 if n == 1 else 3 * HALF * shape.weights * (n - 1) / n * batches
    return slowest(tokens, model, exchanged * n, {
        "products": (model + once) / (n * one.flops * one.trains), "network": exchanged / link}, n)


def checkpoint(shape: Shape, site: Site) -> tuple[float, float]:
    """(bytes of one, seconds that training waits for it): each device copies its share to its node's memory."""
    size = float(STATE * shape.weights)
    return size, size / site.devices / site.copies


def rows(work: Work, per_completion: float) -> Cost:
    """One process reads every completion, selects, writes."""
    completions = work.prompts * work.samples
    return Cost(0.0, 0.0, completions * work.completion * TOKEN, completions * per_completion, "one process")


def stages(shape: Shape, site: Site, work: Work, per_completion: float, lora: bool = False) -> dict[str, Cost]:
    """Of one iteration, in running order; `judged`: 1,000 prompts sampled and scored."""
    few = Work(1000, 1, work.prompt, work.completion)
    judged = sampling(shape, site, few)
    return {"generate": sampling(shape, site, work), "score": reading(shape, site, work, work.samples, site.devices),
            "build_groups": rows(work, per_completion),
            "reference_logprobs": reading(shape, site, work, 2, site.devices),
            "train_preference": training(shape, site, work, lora), "answers and their scores": judged}


def loop(costs: dict[str, Cost], iterations: int, devices: int, jobs: int) -> float:
    """Seconds of all iterations by the schedule that runs them (flows/schedule.py)."""
    names = list(costs)
    waits: dict[str, frozenset[str]] = {}
    for i in range(1, iterations + 1):
        for before, name in zip([None, *names], names, strict=False):
            ahead = f"{before}[{i}]" if before else f"train_preference[{i - 1}]"
            waits[f"{name}[{i}]"] = frozenset({ahead} & set(waits))
    seconds = {full: costs[full.partition("[")[0]].seconds for full in waits}
    return span(waits, seconds, lambda full: Need(costs[full.partition("[")[0]].devices), Room(jobs, devices))


# ---------------------------------------------------------------------------------------------------------------------

SETTINGS = {"8B, one device, LoRA": (LLAMA_8B, Site(1), True), "8B, 8 devices": (LLAMA_8B, Site(8), False),
            "70B, 64 devices": (LLAMA_70B, Site(64), False)}
ITERATIONS = 3


def number(value: float) -> str:
    """1.2 T, 340 G, as many as three digits."""
    for unit, size in (("Z", 1e21), ("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}" if value else "-"


def hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min" if seconds >= 60 else (
        f"{seconds:.1f} s")


def table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = [f"| {' | '.join(columns)} |", f"| {' | '.join(['---', *['---:'] * (len(columns) - 1)])} |"]
    return "\n".join([*head, *(f"| {' | '.join(line)} |" for line in lines)])


def costs_table(measured: dict) -> str:
    work, parts = Work(), []
    for name, (shape, site, lora) in SETTINGS.items():
        costs = stages(shape, site, work, measured["seconds_per_completion"], lora)
        lines = [[stage, number(cost.tokens), number(cost.flops), number(cost.moved), hours(cost.seconds), cost.bound,
                  str(cost.devices or "none")] for stage, cost in costs.items()]
        whole = loop(costs, ITERATIONS, site.devices, 1)
        parts.append(f"**{name}**: {hours(whole)} for {ITERATIONS} iterations\n\n" + table(
            ["stage of an iteration", "tokens", "FLOPs", "bytes", "time", "bound by", "devices"], lines))
    return "\n\n".join(parts)


def breaks_table(measured: dict) -> str:
    """What gives first, by the same functions."""
    work, lines = Work(), []
    for name, (shape, site, lora) in SETTINGS.items():
        costs = stages(shape, site, work, measured["seconds_per_completion"], lora)
        whole = loop(costs, 1, site.devices, 1)
        idle = sum(cost.seconds * (1 - cost.devices / site.devices) for cost in costs.values())
        size, took = checkpoint(shape, site)
        size, took = (size, took) if not lora else (0.0, 0.0)
        train = costs["train_preference"]
        link = train.moved / site.devices / train.seconds if site.devices > 1 else 0.0
        lines.append([name, f"{idle / whole:.0%}", hours(costs["build_groups"].seconds), number(size) if size else "-",
                      hours(took) if took else "-", f"{took / (work.every + took):.0%}" if took else "-",
                      f"{number(link)}B/s" if link else "-"])
    return table(["setting", "device time idle", "rows in one process", "bytes of a checkpoint", "training waits",
                  "of training, every 300 s", "network below which training waits"], lines)


def measured_table(measured: dict) -> str:
    lines = [[one["what"], f"{one['predicted']:.4g}", f"{one['measured']:.4g}", one["unit"],
              f"{one['predicted'] / one['measured'] - 1:+.0%}"] for one in measured["compared"]]
    return f"{measured['machine']}, {measured['date']}\n\n" + table(
        ["what", "predicted", "measured", "unit", "off by"], lines)


BLOCKS = {"costs": costs_table, "breaks": breaks_table, "measured": measured_table}


def written(page: str, measured: dict) -> str:
    """The page with every marked block made anew."""
    for name, make in BLOCKS.items():
        begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        before, _, rest = page.partition(begin)
        _, found, after = rest.partition(end)
        assert found, f"docs/scale.md has no block {name}"
        page = before + begin + "\n" + make(measured) + "\n" + end + after
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into docs/scale.md")
    options = parser.parse_args()
    measured = json.loads(MEASURED.read_text())
    if options.write:
        PAGE.write_text(written(PAGE.read_text(), measured))
    else:
        print("\n\n".join(make(measured) for make in BLOCKS.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
