"""How fast a step is, against what the machine could do: model FLOPs, device peak, memory."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.lm.examples import Example
from pipeline.stage import peak_memory

# Dense bf16 TFLOP/s by what the device's name holds, from NVIDIA's data sheets (half of the figures "with sparsity").
_BF16_TFLOPS = {"B200": 2250.0, "H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0,
                "L40": 181.0, "L4": 121.0, "A10": 125.0}


@dataclass(frozen=True)
class Shape:
    """What of a model the cost of a token depends on."""

    body: int  # weights of its matrices, embeddings and head left out
    head: int  # weights of the LM head, 0 where there is none
    attention: int  # layers x heads x head size
    passes: int  # 3 = forward, gradient of inputs, gradient of weights; 2 where the weights are frozen


def shape_of(model: Any) -> Shape:
    """The shape of a Hugging Face model. Mixture-of-experts models count all their experts."""
    config, output = model.config.get_text_config(), model.get_output_embeddings()
    tables = [m.weight for m in (model.get_input_embeddings(), output) if m is not None]
    matrices = [p for p in model.parameters() if p.ndim >= 2 and not any(p is t for t in tables)]
    frozen = sum(weights(p) for p in matrices if not p.requires_grad)
    return Shape(body=sum(weights(p) for p in matrices), head=0 if output is None else output.weight.numel(),
                 attention=config.num_hidden_layers * config.hidden_size,
                 passes=2 if frozen > sum(weights(p) for p in matrices) / 2 else 3)


def weights(matrix: Tensor) -> int:
    """How many weights a parameter holds: one of 4 bits (bitsandbytes) packs two into each of its bytes."""
    return matrix.numel() * (2 if matrix.dtype == torch.uint8 else 1)


def data_tokens(batch: Sequence[Example]) -> int:
    """Tokens of a batch without padding, a prompt that completions share counted once."""
    return sum(e.completion_tokens + sum(_prompts(e)) for e in _with_rationales(batch))


def flops(shape: Shape, batch: Sequence[Example]) -> float:
    """Model FLOPs of one training step: 2 per weight, token and pass, the head on completion tokens only, attention on
    the pairs a causal mask allows. What is computed twice to save memory counts once.
    """
    scored = sum(e.completion_tokens for e in _with_rationales(batch))
    pairs = 0.0
    for e in _with_rationales(batch):
        pairs += sum(p * p for p in _prompts(e)) / 2
        pairs += sum(n * len(e.prompt_of(k)) + n * n / 2 for k, n in enumerate(map(len, e.completions)))
    forward = 2 * (shape.body * data_tokens(batch) + shape.head * scored) + 4 * shape.attention * pairs
    return shape.passes * forward


def _with_rationales(batch: Sequence[Example]) -> list[Example]:
    return [*batch, *(e.rationale for e in batch if e.rationale is not None)]


def _prompts(e: Example) -> list[int]:
    return [len(e.prompt)] if e.prompts is None else [len(p) for p in e.prompts]


def known_tflops(name: str) -> float | None:
    """Dense bf16 TFLOP/s of a CUDA device of this name, None where the table lacks it: an L4 is no L40."""
    return next((value for part, value in _BF16_TFLOPS.items() if re.search(rf"\b{part}\b", name)), None)


def peak_flops(device: torch.device, precision: str, declared_tflops: float | None) -> float:
    """FLOP/s one device can do in matrix products: as declared, from the table of known devices, or measured."""
    if declared_tflops is not None:
        return declared_tflops * 1e12
    if device.type == "cuda" and precision == "bfloat16":
        name = torch.cuda.get_device_name(device)
        if (known := known_tflops(name)) is not None:
            return known * 1e12
    return measured_flops(device, torch.bfloat16 if precision == "bfloat16" else torch.float32)


@torch.no_grad()
def measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product, the best of a few: tens of milliseconds."""
    size = 8192 if device.type == "cuda" else 1024
    a, best = torch.ones(size, size, dtype=dtype, device=device), 0.0
    for _ in range(4):
        _synchronise(device)
        started = time.perf_counter()
        a @ a
        _synchronise(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_gb() -> float:
    """The most memory held on this process's device so far, or by the process where the device is the CPU."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return peak_memory() / 2**30
