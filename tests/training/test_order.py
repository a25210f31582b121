"""Order, micro-batches and random numbers are functions of (seed, step, group id) and nothing else."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.lm import packed
from pipeline.lm.examples import Example
from pipeline.lm.packed import pack
from pipeline.stage import derive_seed
from pipeline.training import inputs, loop, negatives

IDS = [f"id-{i}" for i in range(10)]


def test_order_follows_ids_not_places():
    turned = IDS[::-1]
    assert [IDS[i] for i in loop.epoch_order(IDS, 7, 0)] == [turned[i] for i in loop.epoch_order(turned, 7, 0)]
    orders = [loop.epoch_order(IDS, seed, epoch).tolist() for seed, epoch in ((7, 0), (7, 1), (8, 1))]
    assert orders[0] != orders[1] != orders[2]


def test_order_is_that_of_the_derived_seeds():
    """The shortcut sorts by exactly derive_seed(seed, "order", epoch, id)."""
    ids = [f"ü-{i}" for i in range(500)]
    expected = sorted(range(500), key=lambda i: derive_seed(7, "order", 2, ids[i]))
    assert loop.epoch_order(ids, 7, 2).tolist() == expected


@given(size=st.integers(1, 25), start=st.integers(0, 8))
def test_batches_from_a_step_are_the_tail_of_all_batches(size, start):
    whole = list(loop.global_batches(IDS, 0, size, 0, 9))
    assert list(loop.global_batches(IDS, 0, size, start, 9)) == whole[start:]
    assert all(len(batch) == size for batch in whole)
    seen = [i for batch in whole for i in batch]
    for epoch in range(len(seen) // 10):
        assert sorted(seen[10 * epoch: 10 * epoch + 10]) == list(range(10)), "every group once a pass"


def test_a_long_row_takes_no_short_ones_with_it_where_rows_are_padded():
    """One of 400 tokens among 60 of 20: with a budget of 420 it goes alone, the others 21 at a time. Counted by their
    own tokens, one short row would go with it and be padded to 400, and so on at every budget.
    """
    def row(name, length):
        return Example(name, np.zeros(10, np.int32), (np.zeros(length - 10, np.int32),))

    examples = [row("long", 400), *(row(f"s{i}", 20) for i in range(60))]
    cut = packed.micro_batches(examples, 420, padded=True)
    assert [len(micro) for micro in cut] == [1, 21, 21, 18]
    assert sum(len(micro) * examples[micro[0]].longest for micro in cut) == 400 + 60 * 20
    assert len(packed.micro_batches(examples, 420)[0]) == 2


def test_micro_batches_keep_groups_whole_and_within_the_budget(tiny):
    @settings(deadline=None)
    @given(budget=st.integers(1, 400), seed=st.integers(0, 5))
    def check(budget, seed):
        examples = tiny.examples(12, k=3, seed=seed)
        cut = packed.micro_batches(examples, budget)
        assert sorted(i for micro in cut for i in micro) == list(range(12))
        for micro in cut:
            laid_out = pack([examples[i] for i in micro], "cpu").input_ids.numel()
            assert laid_out <= budget or len(micro) == 1
        firsts = [examples[micro[0]].longest for micro in cut]
        assert firsts == sorted(firsts, reverse=True)

    check()


def test_uniforms_belong_to_the_group(tiny):
    examples = tiny.examples(4)
    together = inputs.token_uniforms(examples, 3, 11)
    apart = [u for e in examples for u in inputs.token_uniforms([e], 3, 11)]
    assert together.tolist() == apart
    assert together.tolist() != inputs.token_uniforms(examples, 3, 12).tolist()
    columns = negatives.column_uniforms(tiny.examples(2, k=2) + tiny.examples(1, k=5), 3, 11)
    assert columns.shape == (3, 5)
    assert columns[0, :2].tolist() == negatives.column_uniforms(tiny.examples(1, k=2), 3, 11)[0].tolist()
