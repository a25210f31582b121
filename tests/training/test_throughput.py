"""FLOPs by hand, and rates that make sense."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.lm import adapters
from pipeline.lm.examples import Example
from pipeline.lm.settings import AdapterSettings
from pipeline.objectives.contract import Objective
from pipeline.training import throughput


def example(prompt, *completions, own=None):
    def ids(n):
        return np.zeros(n, np.int32)

    prompts = None if own is None else tuple(map(ids, own))
    return Example("g", ids(prompt), tuple(map(ids, completions)), prompts=prompts)


def test_two_weights_of_four_bits_are_one_byte():
    assert throughput.weights(torch.zeros(6, 1, dtype=torch.uint8)) == 12
    assert throughput.weights(torch.zeros(3, 4)) == throughput.weights(torch.zeros(3, 4, dtype=torch.bfloat16)) == 12


def test_shape_of_the_tiny_llama(tiny):
    """Per layer: q and o 32 x 32, k and v 32 x 16, MLP 3 x 32 x 48 = 7,680; two layers, the tied table as head."""
    shape = throughput.shape_of(tiny.llama())
    assert (shape.body, shape.head, shape.attention, shape.passes) == (2 * 7680, 64 * 32, 2 * 32, 3)
    model = tiny.llama()
    adapters.add(model, AdapterSettings(kind="lora", r=2), seed=0)
    assert throughput.shape_of(model).passes == 2, "no gradients of frozen weights"


def test_flops_by_hand():
    """Prompt 4, completions 2 and 3: 9 unique tokens, 5 scored; causal pairs 4*4/2 + (2*4 + 2*2/2) + (3*4 + 3*3/2)."""
    shape = throughput.Shape(body=100, head=50, attention=8, passes=3)
    pairs = 8 + 10 + 16.5
    expected = 3 * (2 * (100 * 9 + 50 * 5) + 4 * 8 * pairs)
    assert throughput.flops(shape, [example(4, 2, 3)]) == expected
    assert throughput.flops(shape, [example(4, 2, 3)] * 2) == 2 * expected


def test_prompts_of_their_own_count_each():
    assert throughput.flops(throughput.Shape(1, 0, 0, 1), [example(4, 2, 3, own=(4, 6))]) == 2 * (4 + 6 + 5)


def test_declared_peak_wins_and_the_measured_one_is_plausible():
    cpu = torch.device("cpu")
    assert throughput.peak_flops(cpu, "bfloat16", 2.5) == 2.5e12
    assert 1e8 < throughput.peak_flops(cpu, "float32", None) < 1e14


def test_metrics_say_how_fast_it_is(tiny, tmp_path):
    """Utilisation is FLOPs over seconds over the declared peak; the time left shrinks to 0."""
    import json

    from pipeline.config import load_part
    from pipeline.stage import Reporter
    from pipeline.training import policy
    from pipeline.training.loop import Job, fit
    from pipeline.training.settings import TrainerSettings, TrainRuntime

    model, examples = tiny.llama(), tiny.examples(8)
    dpo = load_part({"module": "pipeline.objectives.dpo"}, "objective", Objective)
    task = policy.PolicyTask(dpo, None, 0, 10**6, 2**27)
    report = Reporter(metrics_path=tmp_path / "metrics.jsonl")
    fit(model, examples, task, Job(TrainerSettings(batch_size=8, epochs=3.0, precision="float32"),
                                   TrainRuntime(log_every=1, peak_tflops=1.0), 0, tmp_path / "c", report))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        expected = throughput.flops(throughput.shape_of(model), examples) / line["seconds_per_step"] / 1e12
        assert line["flop_utilisation"] == pytest.approx(expected)
        assert line["tokens_per_second"] == pytest.approx(
            sum(len(e.prompt) + e.completion_tokens for e in examples) / line["seconds_per_step"])
    assert lines[-1]["eta_seconds"] == 0 < lines[0]["eta_seconds"] and lines[0]["peak_memory_gb"] > 0


def test_a_device_is_known_by_its_whole_name():
    """Dense bf16 TFLOP/s of NVIDIA's data sheets; half of what they print with sparsity."""
    known = {"NVIDIA L4": 121, "NVIDIA L40": 181, "NVIDIA L40S": 362, "NVIDIA A10": 125, "NVIDIA A10G": None,
             "NVIDIA A100-SXM4-80GB": 312, "NVIDIA H100 PCIe": 756, "NVIDIA H100 80GB HBM3": 989, "NVIDIA H200": 989}
    assert {name: throughput.known_tflops(name) for name in known} == known
