"""Which negatives a step trains on, however its batch is cut."""

from __future__ import annotations

import math

import pytest

from pipeline.build import load_part
from pipeline.training import forward, negatives, policy
from pipeline.training.gradients import accumulate

RNCE = load_part({"module": "pipeline.objectives.rnce"}, "objective")
MC = load_part({"module": "pipeline.selection.mc", "m": 2}, "negatives")
UNIFORM = load_part({"module": "pipeline.selection.uniform"}, "negatives")


def how(part):
    return negatives.Draw(part, 0, 10**6, 2**27)


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
    hardest = load_part({"module": "pipeline.selection.hardest", "weights": "logp"}, "negatives")
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


def test_weights_that_scoring_converted_still_get_a_gradient(tiny):
    """Under bfloat16 autocast scoring and learning share a context, whose cache must not hand over weights without a
    gradient.
    """
    model = tiny.llama()
    accumulate(model, policy.PolicyTask(RNCE, MC, 0, 10**6, 2**27), tiny.examples(4, k=5), 0, "bfloat16", 10**6)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_loss_that_looks_beyond_its_group_has_its_negatives_drawn_before(tiny):
    """KTO's KL point is taken over the batch: all negatives are drawn before the first micro-batch."""
    kto = load_part({"module": "pipeline.objectives.kto"}, "objective")
    made = policy.PolicyTask(kto, load_part({"module": "pipeline.selection.mc", "m": 1}, "negatives"), 0, 60, 2**27)
    examples, model = tiny.examples(6, k=4), tiny.llama()
    assert not made.draws_apart
    batch, metrics = made.prepare(model, examples, 0)
    assert [len(e.completions) for e in batch] == [2] * 6
    assert "kernel_entropy" in metrics
    apart = policy.PolicyTask(RNCE, MC, 0, 60, 2**27)
    assert apart.draws_apart
    assert apart.prepare(model, examples, 0) == (examples, {})
