"""Which negatives a step trains on, however its batch is cut."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from pipeline.config import load_part
from pipeline.lm import forward, packed, prefix
from pipeline.lm.examples import Example
from pipeline.negatives.contract import Draw
from pipeline.objectives.contract import Objective
from pipeline.training import negatives, policy
from pipeline.training.gradients import accumulate

RNCE = load_part({"module": "pipeline.objectives.rnce"}, "objective", Objective)
MC = load_part({"module": "pipeline.negatives.mc", "m": 2}, "negatives", Draw)
UNIFORM = load_part({"module": "pipeline.negatives.uniform"}, "negatives", Draw)


def how(part):
    return negatives.NegativeDraw(part, 0, 10**6, 2**27)


def test_negatives_are_drawn_and_the_preferred_stays(tiny):
    examples, model = tiny.examples(6, k=5), tiny.llama()
    drawn, metrics = negatives.draw(model, examples, 0, how(MC))
    again, _ = negatives.draw(model, examples, 0, how(MC))
    other, _ = negatives.draw(model, examples, 1, how(MC))

    def ids(batch):
        return [[c.tolist() for c in e.completions] for e in batch]

    assert ids(drawn) == ids(again) != ids(other)
    for before, after in zip(examples, drawn, strict=True):
        assert len(after.completions) == 3
        assert after.completions[0] is before.completions[0]
        assert all(any(c is b for b in before.completions[1:]) for c in after.completions[1:])
        for completion, ref in zip(after.completions, after.ref_logps, strict=True):
            place = next(i for i, b in enumerate(before.completions) if b is completion)
            assert ref == before.ref_logps[place], "a drawn completion keeps its own reference"
    assert (metrics["kernel_entropy"] <= math.log(4) + 1e-6).all()


def test_candidates_are_scored_by_the_live_policy(tiny):
    """A draw that returns the largest log-prob picks the candidate the model itself finds most likely."""
    model, examples = tiny.llama(), tiny.examples(4, k=4)
    hardest = load_part({"module": "pipeline.negatives.hardest", "weights": "logp"}, "negatives", Draw)
    drawn, _ = negatives.draw(model, examples, 0, how(hardest))
    logps = forward.group_logps(model, forward.collate(examples), 2**27)
    best = logps[:, 1:].argmax(1) + 1
    assert [e.completions[1].tolist() for e in drawn] == [
        e.completions[i].tolist() for e, i in zip(examples, best.tolist(), strict=True)]


@pytest.mark.parametrize("part", [MC, UNIFORM], ids=["mc", "uniform"])
def test_draws_do_not_depend_on_how_the_batch_is_cut(tiny, part):
    """Drawn micro-batch by micro-batch: the same completions, loss and gradient (to 1e-5) as in one."""
    examples, found = tiny.examples(8, k=5), []
    for tokens in (60, 10**6):
        model = tiny.llama()
        task = policy.PolicyTask(RNCE, part, 0, tokens, 2**27)
        trained, values, bad = accumulate(model, task, examples, 3, "float32", tokens)
        assert not bad
        drawn = {e.id: [c.tolist() for c in e.completions] for e in trained}
        assert len(drawn) == 8
        found.append((drawn, values, [p.grad for p in model.parameters()]))
    (drawn, values, gradient), (whole, its, other) = found
    assert drawn == whole
    assert values == pytest.approx(its, abs=1e-4)
    for one, two in zip(gradient, other, strict=True):
        assert (one - two).norm() <= 1e-5 * one.norm()


@pytest.mark.parametrize("tokens", [60, 10**6])
def test_prompts_computed_once_change_nothing(tiny, tokens):
    """A model that shares prompts scores and learns on one stem: the draws, losses and gradient (to 1e-5) of one that
    does both in rows of their own.
    """
    examples, found = tiny.examples(8, k=5), []
    for share in (False, True):
        model = tiny.llama()
        prefix.prepare(model, share)
        task = policy.PolicyTask(RNCE, MC, 0, tokens, 2**27)
        assert negatives.can_grow(model, task.drawn_apart) == share
        trained, values, bad = accumulate(model, task, examples, 3, "float32", tokens)
        assert not bad
        drawn = {e.id: [c.tolist() for c in e.completions] for e in trained}
        found.append((drawn, values, [p.grad for p in model.parameters()]))
    (drawn, values, gradient), (grown, its, other) = found
    assert drawn == grown and len(drawn) == 8
    assert values == pytest.approx(its, rel=1e-5, abs=1e-5)
    for one, two in zip(gradient, other, strict=True):
        assert (one - two).norm() <= 1e-5 * one.norm()


def test_groups_that_cannot_grow_are_drawn_from_all_the_same(tiny):
    """One group has a candidate with a prompt of its own: all of the batch goes the way that knows such groups."""
    one, *others = tiny.examples(4, k=3)
    examples = [dataclasses.replace(one, prompts=(one.prompt, one.prompt, others[0].prompt)), *others]
    task, found = policy.PolicyTask(RNCE, MC, 0, 10**6, 2**27), []
    assert not task.facts(examples).one_prompt and task.facts(others).one_prompt
    for share in (False, True):
        model = tiny.llama()
        prefix.prepare(model, share)
        _, values, bad = accumulate(model, task, examples, 0, "float32", 10**6)
        assert not bad
        found.append((values["loss"], float(sum(p.grad.norm() for p in model.parameters()))))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    with pytest.raises(AssertionError, match="one prompt"):
        packed.pack_stem(examples, "cpu")


def test_a_micro_batch_holds_what_learns_at_once(tiny):
    """The preferred and the M longest; or a quarter of the candidates, scored without gradient, where that is more."""
    def example(*lengths):
        return Example("a", np.arange(3, 14), tuple(np.arange(3, 3 + n) for n in lengths))

    part = load_part({"module": "pipeline.negatives.mc", "m": 1}, "negatives", Draw)
    one = negatives.NegativeDraw(part, 0, 10**6, 2**27)
    assert one.cost(example(5, 2, 9, 4)) == 10 + 5 + 9
    assert how(MC).cost(example(5, 2, 9, 4)) == 10 + 5 + 9 + 4
    assert one.cost(example(1, *[20] * 10)) == (10 + 200 + 3) // 4
    assert policy.PolicyTask(RNCE, MC, 0, 10**6, 2**27).cost(example(5, 2, 9, 4)) == 10 + 5 + 9 + 4
    assert how(UNIFORM).cost(example(1, *[20] * 10)) == 10 + 1 + 20, "nothing is scored"
    own = dataclasses.replace(example(5, 2, 9), prompts=tuple(np.arange(3, 3 + n) for n in (11, 50, 11)))
    assert one.cost(own) == (10 + 5 + 9) + (50 + 2 - 1), "any of them could be drawn"
    assert policy.PolicyTask(RNCE, None, 0, 10**6, 2**27).cost(example(5, 2, 9, 4)) == 10 + 5 + 2 + 9 + 4


@pytest.mark.parametrize("share", [False, True])
def test_weights_that_scoring_converted_still_get_a_gradient(tiny, share):
    """Under bfloat16 autocast scoring and learning share a context, whose cache must not hand over weights without a
    gradient.
    """
    model = tiny.llama()
    prefix.prepare(model, share)
    accumulate(model, policy.PolicyTask(RNCE, MC, 0, 10**6, 2**27), tiny.examples(4, k=5), 0, "bfloat16", 10**6)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_loss_that_looks_beyond_its_group_has_its_negatives_drawn_before(tiny):
    """KTO's KL point is taken over the batch: all negatives are drawn before the first micro-batch."""
    kto = load_part({"module": "pipeline.objectives.kto"}, "objective", Objective)
    one = load_part({"module": "pipeline.negatives.mc", "m": 1}, "negatives", Draw)
    made = policy.PolicyTask(kto, one, 0, 60, 2**27)
    examples, model = tiny.examples(6, k=4), tiny.llama()
    assert made.drawn_apart is None
    batch, metrics = made.prepare(model, examples, 0)
    assert [len(e.completions) for e in batch] == [2] * 6
    assert "kernel_entropy" in metrics
    apart = policy.PolicyTask(RNCE, MC, 0, 60, 2**27)
    assert apart.drawn_apart is not None
    assert apart.prepare(model, examples, 0) == (examples, {})
