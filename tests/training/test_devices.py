"""Every objective on a device that is not the CPU: forward, loss and backward pass without numbers, and on a card.

FakeTensor runs the operations without numbers on the device `meta`, which for torch is another device than the CPU, as
CUDA is: an operation that mixes both raises, as does one that reads a number before all are there. (Fake tensors of
CUDA itself need a build of torch that has it.)
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv
from transformers import AttentionInterface

from pipeline.config import load_part
from pipeline.lm import forward, prefix
from pipeline.lm.examples import Example
from pipeline.objectives.contract import Objective
from pipeline.training import gradients, policy
from tests.objectives.test_all import NODES, width

every_objective = pytest.mark.parametrize("name", NODES)


def examples_for(part: Any, tiny: Any) -> list[Example]:
    """Four groups with all that an objective may need."""
    rng, k = np.random.default_rng(0), width(part)
    return [replace(e, previous_logps=e.ref_logps, scores=tuple(rng.random(k)), label=i % 2 == 0,
                    rationale=Example(e.id, e.prompt, (e.completions[0],)))
            for i, e in enumerate(tiny.examples(4, k))]


def losses_of(part: Any, tiny: Any, device: str, precision: str = "float32") -> tuple[torch.Tensor, Any]:
    """(G,) losses with gradient of a small model on `device`, and the model."""
    with torch.device("meta" if device == "meta" else "cpu"):  # a fake module cannot be moved
        model, reference = tiny.llama(), tiny.llama(1)
    if device == "cuda":
        model, reference = model.to(device), reference.to(device)
    for one in (model, reference):
        one.set_attn_implementation(forward.ATTENTION)
    policy.add_parameters(model, part)
    task = policy.PolicyTask(part, None, 0, 10**6, 2**27, reference_model=reference,
                             state=policy.first_state(part, torch.device(device)))
    batch = examples_for(part, tiny)
    with forward.autocast(torch.device(device), precision):
        losses, _, _ = task.losses(model, batch, 0, task.facts(batch))
    return losses, model


@pytest.fixture
def shared() -> None:
    """The packed layout's attention is known by name, without the probe that compares numbers."""
    AttentionInterface.register(forward.ATTENTION, forward.tree_attention)
    prefix.AttentionMaskInterface.register(forward.ATTENTION, prefix.sdpa_mask)


@pytest.fixture
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta` has none, not even to switch it off."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


@every_objective
def test_nothing_is_on_another_device_than_the_policy(name: str, tiny: Any, shared: None, no_autocast: None) -> None:
    part = load_part(NODES[name], "objective", Objective)
    shapes = ShapeEnv(allow_dynamic_output_shape_ops=True, allow_scalar_outputs=True)
    fake = FakeTensorMode(allow_non_fake_inputs=True, shape_env=shapes)
    with fake, contextlib.suppress(GuardOnDataDependentSymNode):  # shapes by numbers (Cringe): run as far as these
        losses, model = losses_of(part, tiny, "meta")
        assert losses.device.type == "meta"
        losses.sum().backward()
        assert all(p.grad.device.type == "meta" for p in model.parameters() if p.grad is not None)


def test_a_mixture_of_devices_is_found(tiny: Any, shared: None, no_autocast: None) -> None:
    """What the test above would say of an objective that makes a tensor on the CPU."""
    part = load_part(NODES["dpo"], "objective", Objective)
    loss = part.plugin.loss
    wrong = dataclasses.replace(part, plugin=dataclasses.replace(
        part.plugin, loss=lambda batch, settings: loss(replace(batch, ref_logps=torch.zeros(4, 2)), settings)))
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(RuntimeError, match="device"):
        losses_of(wrong, tiny, "meta")


@pytest.mark.gpu
@every_objective
def test_losses_and_gradients_on_a_card_are_the_cpus(name: str, tiny: Any, shared: None) -> None:
    part = load_part(NODES[name], "objective", Objective)
    found = {}
    for device in ("cpu", "cuda"):
        losses, model = losses_of(part, tiny, device)
        losses.sum().backward()
        found[device] = [losses.detach().cpu(), *(p.grad.cpu() for p in model.parameters() if p.grad is not None)]
    for ours, theirs in zip(*found.values(), strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
@every_objective
def test_losses_in_bfloat16_on_a_card_are_near(name: str, tiny: Any, shared: None) -> None:
    """Through the kernel of variable lengths: log-probs of up to 9 tokens, so a few tenths."""
    part = load_part(NODES[name], "objective", Objective)
    exact, low = (losses_of(part, tiny, "cuda", precision)[0].detach() for precision in ("float32", "bfloat16"))
    assert low.isfinite().all()
    torch.testing.assert_close(low, exact, atol=1.0, rtol=0.2)


@pytest.mark.gpu
def test_no_micro_batch_waits_for_the_device(tiny: Any, shared: None) -> None:
    """Reading a number of the device inside a pass raises."""
    part = load_part(NODES["dpo"], "objective", Objective)
    losses_of(part, tiny, "cuda")[0].sum().backward()  # kernels and handles are made once
    model, batch = tiny.llama().to("cuda"), examples_for(part, tiny)
    model.set_attn_implementation(forward.ATTENTION)
    task, found = policy.PolicyTask(part, None, 0, 10**6, 2**27), gradients.StepResult()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with forward.autocast(torch.device("cuda"), "bfloat16"):
            losses, metrics, trained = task.losses(model, batch, 0, task.facts(batch))
        losses.sum().backward()
        found.add(losses.sum(), trained, losses, metrics)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.read().bad == []
