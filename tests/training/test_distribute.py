"""Who does which micro-batches: all of them once, as many passes in every process."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy

from pipeline.errors import UserError
from pipeline.lm import forward, packed, prefix
from pipeline.training import distribute, gradients
from pipeline.training.gradients import World
from pipeline.training.settings import TrainRuntime


def test_every_group_counts_once_and_passes_are_equal(tiny):
    @settings(deadline=None)
    @given(number=st.integers(1, 12), size=st.integers(1, 5), tokens=st.integers(1, 400), seed=st.integers(0, 3))
    def check(number, size, tokens, seed):
        batch = tiny.examples(number, seed=seed)
        shares = [World(rank, size).cut(batch, tokens) for rank in range(size)]
        assert len({len(share) for share in shares}) == 1
        counted = [i for share in shares for micro, counts in share if counts for i in micro]
        assert sorted(counted) == list(range(number))

    check()


def test_work_is_even(tiny):
    """24 groups that would fit in one micro-batch: four processes get a quarter of the tokens each, to a third."""
    batch = tiny.examples(24)
    loads = [sum(batch[i].completion_tokens + 2 * len(batch[i].prompt) for micro, counts in World(rank, 4).cut(
        batch, 10**6) for i in micro if counts) for rank in range(4)]
    assert max(loads) < 1.34 * sum(loads) / 4


def test_alone_nothing_is_exchanged(tiny):
    batch, world = tiny.examples(6), World()
    assert world.cut(batch, 50) == [(micro, True) for micro in packed.micro_batches(batch, 50)]
    assert world.first and world.gather(3) == [3] and world.agree(True)
    assert world.run(lambda model, x: (model, x), "model", 1) == ("model", 1)
    assert distribute.first_then_all(world, lambda: 5) == 5


def test_several_processes_are_not_made_out_of_one():
    with pytest.raises(UserError, match="2 processes have to be started together"):
        distribute.join(TrainRuntime(processes=2, strategy="ddp"), torch.device("cpu"))


def test_a_model_that_does_not_name_its_layers(tiny):
    model = tiny.llama()
    assert len(distribute.layers_of(model)) == 2
    model._no_split_modules = None
    with pytest.raises(UserError, match=r"model: LlamaForCausalLM does not say what its layers are"):
        distribute.layers_of(model)


@pytest.fixture
def mesh():
    """Of this one process, over gloo."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def _pass(shell, examples, wide):
    """Log-probs of the examples in bfloat16, and the bytes left of copies of weights of the shapes `wide`."""
    kept = {}

    def pack(tensor):
        if tensor.dtype == torch.bfloat16 and {tuple(tensor.shape), tuple(tensor.shape)[::-1]} & wide:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with forward.autocast(torch.device("cpu"), "bfloat16"):
            logps = shell(forward.group_logps, forward.collate(examples, "cpu"), 2**27)
        return logps, sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_no_layers_copy_in_bfloat16_outlives_it(tiny, mesh):
    """What a forward pass leaves of the layers' weights until the backward pass: every one in bfloat16 by autocast,
    none by FSDP2's own policy. Values and gradients are those of autocast, up to bfloat16.
    """
    examples, found = tiny.examples(4), {}
    for name, policy in (("autocast", MixedPrecisionPolicy()), ("policy", distribute.BF16)):
        model = tiny.llama()
        prefix.prepare(model)
        matrices = [p for layer in distribute.layers_of(model) for p in layer.parameters() if p.ndim == 2]
        wide, size = {tuple(p.shape) for p in matrices}, sum(p.numel() for p in matrices)
        shell = distribute.shard(model, mesh, policy)
        logps, left = _pass(shell, examples, wide)
        logps.sum().backward()
        gradients_of = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
        assert {g.dtype for g in gradients_of.values()} == {torch.float32}  # masters and their gradients
        found[name] = logps.detach(), left, gradients_of
    assert found["autocast"][1] >= 2 * size and found["policy"][1] == 0
    torch.testing.assert_close(found["policy"][0], found["autocast"][0], atol=0.5, rtol=0.05)
    for name, gradient in found["autocast"][2].items():
        other = found["policy"][2][name]
        assert torch.nn.functional.cosine_similarity(gradient.flatten(), other.flatten(), dim=0) > 0.95, name


def test_on_a_cpu_nothing_is_gathered_in_bfloat16(tiny, mesh, monkeypatch):
    """A CPU run computes what it did."""
    monkeypatch.setattr(distribute, "init_device_mesh", lambda *_: mesh)
    seen = []
    monkeypatch.setattr(distribute, "shard", lambda model, mesh, policy: seen.append(policy))
    runtime = TrainRuntime(processes=2, strategy="fsdp2")
    assert not distribute.spread(World(0, 2), tiny.llama(), runtime, "bfloat16").low
    assert seen == [MixedPrecisionPolicy()] and distribute.BF16.param_dtype == torch.bfloat16


def test_losses_are_read_once_all_micro_batches_are_queued(tiny):
    """`add` asks nothing of the device; `read` gives the sum in order, and the groups whose loss is not finite."""
    a, b, c = tiny.examples(3)
    found = gradients.StepResult()
    found.add(torch.tensor(0.5), [a, b], torch.tensor([1.0, float("nan")]), {})
    found.add(torch.tensor(0.25), [c], torch.tensor([2.0]), {})
    assert (found.loss, found.bad, found.trained) == (0.0, [], [a, b, c])
    assert (found.read().loss, found.bad, found.unread) == (0.75, [b.id], [])
