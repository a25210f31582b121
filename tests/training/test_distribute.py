"""Who does which micro-batches: all of them once, as many passes in every process."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.lm import packed
from pipeline.training import distribute
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
