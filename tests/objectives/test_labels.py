"""Binary feedback: BCO, KTO, NPO, on labelled completions and on pairs.

The worked completions have log-ratios 2 (wanted) and -1 (unwanted), with beta = 0.1 rewards 0.2 and -0.1.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from pipeline.config import Part, problems_of
from pipeline.objectives import apo_zero, bco, kto, nca_pair, npo
from pipeline.objectives.contract import LossInputs, Needs, TokenInputs
from pipeline.training.policy import first_state
from tests.objectives.batches import view_of

LN2 = math.log(2)


def s(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def softplus(z: float) -> float:
    return math.log1p(math.exp(z))


def ones(worked, log_ratios: list[float], labels: list[bool], **more) -> LossInputs:
    """Groups of one with these log-ratios and labels."""
    logps = worked.doubles(*[[v] for v in log_ratios])
    return worked.pairs(logps, torch.zeros_like(logps), labels=torch.tensor(labels), **more)


def mismatched(z0: float) -> dict[str, torch.Tensor]:
    return {"mismatched_logps": torch.tensor([z0 - 7.0]), "mismatched_ref_logps": torch.tensor([-7.0])}


# -------------------------------------------------------------------------------------------------------------- BCO


def stepped(batch: LossInputs, settings: bco.Settings, state: dict[str, torch.Tensor] | None = None) -> LossInputs:
    """The batch with the state after it, as the trainer gives it."""
    if state is None:
        state = {name: torch.tensor(value, dtype=torch.float64) for name, value in bco.state(settings).items()}
    batch = dataclasses.replace(batch, state=state)
    return dataclasses.replace(batch, state=bco.update(batch, settings))


def test_bco_hand_worked(worked):
    """delta = (0.2 - 0.1) / 2 = 0.05: log(1 + e^-0.15) twice = 1.241914095579064; without shift 1.242535529455163.

    A pair costs what its two halves cost as labelled completions.
    """
    with_shift, without = bco.Settings(), bco.Settings(shift="zero")
    shifted = worked.value(bco, with_shift, stepped(worked.pairs(), with_shift))
    assert shifted == pytest.approx(1.241914095579064, abs=1e-12)
    assert worked.value(bco, without) == pytest.approx(1.242535529455163, abs=1e-12)
    halves = stepped(ones(worked, [2.0, -1.0], [True, False]), with_shift)
    losses, metrics = bco.loss(halves, with_shift)
    assert losses.tolist() == pytest.approx([softplus(-0.15)] * 2, abs=1e-12)
    assert metrics["delta"].tolist() == pytest.approx([0.05, 0.05], abs=1e-12)


def test_bco_at_the_reference(worked):
    batch = stepped(worked.pairs(worked.REFERENCE, worked.REFERENCE.clone()), bco.Settings())
    assert worked.value(bco, bco.Settings(), batch) == pytest.approx(2 * LN2, abs=1e-12)


def test_bco_gradient_does_not_go_through_the_shift(worked):
    """dL/dr_w = -s(-0.15), dL/dr_l = s(-0.15), times beta."""
    leaf = worked.POLICY.clone().requires_grad_()
    bco.loss(stepped(worked.pairs(leaf), bco.Settings()), bco.Settings())[0].sum().backward()
    assert leaf.grad is not None
    assert leaf.grad[0].tolist() == pytest.approx([-0.1 * s(-0.15), 0.1 * s(-0.15)], abs=1e-12)


def test_bco_extremes(worked):
    """A wanted completion at log-ratio -2000 costs 200 nats, an unwanted one at 2000 too."""
    losses, _ = bco.loss(ones(worked, [-2000.0, 2000.0], [True, False]), bco.Settings(shift="zero"))
    assert losses.tolist() == pytest.approx([200.0, 200.0], abs=1e-9)


@pytest.mark.parametrize(("shift", "deltas"), [
    # step 1: wanted 1, 3 (mean 2), unwanted -1;  step 2: wanted 5, unwanted -3 and -5 (mean -4), beta = 1
    ("ema", [0.5, 0.5 * (2 + 0.1 * 3 - 1 - 0.1 * 3)]),  # the first batch sets the means; then 2.3 and -1.3
    ("cumulative", [0.5, 0.5 * (9 / 3 - 9 / 3)]),  # 1, 3, 5 and -1, -3, -5
    ("pooled", [1.0, 0.0]),  # (1 + 3 - 1) / 3, then all six
    ("batches", [1.0, 0.0]),  # 1, then the mean of 1 and (5 - 3 - 5) / 3 = -1
    ("zero", [0.0, 0.0]),
])  # fmt: skip
def test_bco_shift_over_two_steps(worked, shift, deltas):
    settings = bco.Settings(beta=1.0, shift=shift)
    first = stepped(ones(worked, [1.0, 3.0, -1.0], [True, True, False]), settings)
    second = stepped(ones(worked, [5.0, -3.0, -5.0], [True, False, False]), settings, first.state)
    for batch, delta in zip((first, second), deltas, strict=True):
        assert bco.loss(batch, settings)[1]["delta"].tolist() == pytest.approx([delta] * 3, abs=1e-12)


def test_bco_batch_counts_differ_from_example_counts(worked):
    """One example 4, then three of 0: pooled 1, batches 2."""
    for shift, delta in (("pooled", 1.0), ("batches", 2.0)):
        settings = bco.Settings(beta=1.0, shift=shift)
        first = stepped(ones(worked, [4.0], [True]), settings)
        second = stepped(ones(worked, [0.0, 0.0, 0.0], [True, False, True]), settings, first.state)
        assert bco.loss(second, settings)[1]["delta"][0].item() == pytest.approx(delta, abs=1e-12)


def test_bco_means_go_on_where_float32_would_stand_still():
    """2^24 examples seen, and one more of reward 1 against a mean of 0: 2^24 + 1, and 1 / (2^24 + 1)."""
    settings = bco.Settings(beta=1.0, shift="pooled")
    state = first_state(Part("bco", bco.OBJECTIVE, settings), torch.device("cpu"))
    state["count_all"] += 2**24
    one = LossInputs(torch.tensor([[1.0]]), torch.tensor([[1]]), torch.tensor([[True]]), torch.zeros(1, 1),
                     labels=torch.tensor([True]), state=state)
    found = bco.update(one, settings)
    assert found["count_all"].item() == 2**24 + 1
    assert found["mean_all"].item() == pytest.approx(1 / (2**24 + 1), rel=1e-12)


def test_bco_side_without_examples_stays(worked):
    settings = bco.Settings(beta=1.0)
    first = stepped(ones(worked, [4.0], [True]), settings)
    assert {k: v.item() for k, v in first.state.items()} == {
        "mean_wanted": 4.0, "count_wanted": 1.0, "mean_unwanted": 0.0, "count_unwanted": 0.0}
    second = stepped(ones(worked, [-2.0], [False]), settings, first.state)
    assert {k: v.item() for k, v in second.state.items()} == {
        "mean_wanted": 4.0, "count_wanted": 1.0, "mean_unwanted": -2.0, "count_unwanted": 1.0}


def test_bco_without_its_state_is_an_error(worked):
    with pytest.raises(ValueError, match="mean_wanted"):
        bco.loss(worked.pairs(), bco.Settings())


def test_bco_needs_the_batch_only_for_its_shift():
    assert bco.needs(bco.Settings()) == Needs(labels=True, reference=True, batch=True)
    assert bco.needs(bco.Settings(shift="zero")) == Needs(labels=True, reference=True)
    assert bco.state(bco.Settings(shift="zero")) == {}


def test_bco_with_nca(worked):
    """NCA is half of BCO without shift, and -log s(r_w) / 2 - log s(-r_w) / 2; r_w = 0.02."""
    half = 0.5 * worked.value(bco, bco.Settings(beta=0.01, shift="zero"))
    expected = half + 0.5 * softplus(-0.02) + 0.5 * softplus(0.02)
    assert worked.value(nca_pair, nca_pair.Settings(beta=0.01)) == pytest.approx(expected, abs=1e-12)


# -------------------------------------------------------------------------------------------------------------- KTO


def test_kto_hand_worked(worked):
    """z0 = 1, beta 0.1: wanted 1 - s(0.1) = 0.475020812521060; unwanted 1 - s(0.2) = 0.450166002687522.

    With lambda_D = 2 and lambda_U = 3 twice and three times that. A pair costs the mean of the two.
    """
    batch = ones(worked, [2.0, -1.0], [True, False], **mismatched(1.0))
    losses, metrics = kto.loss(batch, kto.Settings())
    assert losses.tolist() == pytest.approx([0.47502081252106, 0.4501660026875221], abs=1e-9)
    assert metrics["reference_point"].tolist() == pytest.approx([1.0, 1.0])
    weighted, _ = kto.loss(batch, kto.Settings(desirable_weight=2.0, undesirable_weight=3.0))
    assert weighted.tolist() == pytest.approx([2 * losses[0].item(), 3 * losses[1].item()], abs=1e-12)
    pair = worked.value(kto, kto.Settings(), worked.pairs(**mismatched(1.0)))
    assert pair == pytest.approx(losses.mean().item(), abs=1e-12)


def test_kto_counts_every_example_of_a_mixed_batch_once():
    """A pair with log-ratios 2 and -1 and a thumbs-down with -1, z0 = 1: the mean of 0.47502, 0.45017 and 0.45017."""
    logps = torch.tensor([[2.0, -1.0], [-1.0, 0.0]], dtype=torch.float64)
    batch = LossInputs(logps, torch.tensor([[3, 3], [3, 0]]), torch.tensor([[True, True], [True, False]]),
                       torch.zeros_like(logps), labels=torch.tensor([True, False]), **mismatched(1.0))
    losses, _ = kto.loss(batch, kto.Settings())
    assert losses.mean().item() == pytest.approx((0.475020812521060 + 2 * 0.450166002687522) / 3, abs=1e-9)


@pytest.mark.parametrize("point", ["mismatched", "pair", "zero"])
def test_kto_at_the_reference(worked, point):
    """lambda / 2 for each example."""
    settings = kto.Settings(reference_point=point, desirable_weight=1.5)
    got = worked.at_reference(kto, settings, **mismatched(0.0))
    assert got == pytest.approx((0.75 + 0.5) / 2, abs=1e-12)


def test_kto_point_is_clamped_after_the_mean(worked):
    """Mismatched log-ratios -3 and 5: z0 = 1, not (0 + 5) / 2. Mean below 0: z0 = 0."""
    more = {"mismatched_logps": torch.tensor([-3.0, 5.0]), "mismatched_ref_logps": torch.zeros(2)}
    batch = ones(worked, [2.0, -1.0], [True, False], **more)
    assert kto.loss(batch, kto.Settings())[1]["reference_point"].tolist() == [1.0, 1.0]
    below = dataclasses.replace(batch, mismatched_logps=torch.tensor([-30.0, 5.0]))
    zero = kto.Settings(reference_point="zero")
    assert torch.equal(kto.loss(below, kto.Settings())[0], kto.loss(batch, zero)[0])


def test_kto_gradient_has_none_through_its_point(worked):
    """-lambda beta s'(0.1) and lambda beta s'(0.2)."""
    logps = worked.doubles([2.0], [-1.0])
    point = torch.tensor([1.0, 1.0], requires_grad=True)
    more = {"labels": torch.tensor([True, False]), "mismatched_logps": point, "mismatched_ref_logps": torch.zeros(2)}
    got = worked.gradient(kto, kto.Settings(), logps, ref_logps=torch.zeros_like(logps), **more)
    assert [row[0] for row in got] == pytest.approx([-0.1 * s(0.1) * s(-0.1), 0.1 * s(0.2) * s(-0.2)], abs=1e-12)
    assert point.grad is None


def test_kto_pair_compares_with_the_other_side(worked):
    """a = (2, 4), b = (-1, 5), means 3 and 2: wanted against 2, unwanted against 3.

    Group 0: ((1 - s(0)) + s(0.1 (-1 - 3))) / 2; group 1: ((1 - s(0.2)) + s(0.1 (5 - 3))) / 2.
    """
    logps = worked.doubles([2.0, -1.0], [4.0, 5.0])
    losses, _ = kto.loss(worked.pairs(logps, torch.zeros_like(logps)), kto.Settings(reference_point="pair"))
    assert losses.tolist() == pytest.approx([(0.5 + s(-0.4)) / 2, (s(-0.2) + s(0.2)) / 2], abs=1e-12)


def test_kto_with_point_zero_is_half_of_apo_zero(worked):
    half = worked.value(kto, kto.Settings(reference_point="zero"))
    assert 2 * half == pytest.approx(worked.value(apo_zero, apo_zero.Settings()), abs=1e-12)


def test_kto_saturates(worked):
    """Log-ratios 2000 and -2000: the well placed cost 0, the badly placed lambda."""
    batch = ones(worked, [2000.0, -2000.0, -2000.0, 2000.0], [True, False, True, False])
    losses, _ = kto.loss(batch, kto.Settings(reference_point="zero"))
    assert losses.tolist() == pytest.approx([0.0, 0.0, 1.0, 1.0], abs=1e-12)


def test_kto_needs_what_its_point_needs():
    needs = {point: kto.needs(kto.Settings(reference_point=point)) for point in ("mismatched", "pair", "zero")}
    assert needs == {
        "mismatched": Needs(reference=True, labels=True, mismatched=True, batch=True),
        "pair": Needs(reference=True, pairs=True, batch=True),
        "zero": Needs(reference=True, labels=True),
    }
    problems = problems_of(kto.Settings, {"reference_point": "median"}, "objective")
    assert problems == ["objective.reference_point: 'median' is not allowed, expected one of mismatched, pair, zero"]


# -------------------------------------------------------------------------------------------------------------- NPO


def test_npo_hand_worked(worked):
    """Unwanted with log-ratio -1: 20 log(1 + e^-0.1) = 12.887933201471423; the wanted one costs nothing."""
    losses, _ = npo.loss(ones(worked, [2.0, -1.0], [True, False]), npo.Settings())
    assert losses.tolist() == pytest.approx([0.0, 12.88793320147142], abs=1e-12)
    assert worked.value(npo, npo.Settings()) == pytest.approx(12.88793320147142, abs=1e-12)


def test_npo_at_the_reference(worked):
    for beta in (0.1, 1.0):
        assert worked.at_reference(npo, npo.Settings(beta=beta)) == pytest.approx(2 / beta * LN2, abs=1e-12)


def test_npo_is_gradient_ascent_that_fades_out(worked):
    """dL/dlogp = 2 s(beta log-ratio): 1 at the start and for beta -> 0, 0 far below the reference."""
    zeros = worked.doubles([0.0, 0.0])
    for beta, ratio, expected in ((0.1, 0.0, 1.0), (0.1, -1.0, 2 * s(-0.1)), (1e-6, -50.0, 1.0), (0.1, -2000.0, 0.0)):
        got = worked.gradient(npo, npo.Settings(beta=beta), worked.doubles([0.0, ratio]), ref_logps=zeros)[0]
        assert got == pytest.approx([0.0, expected], abs=1e-4 if beta == 1e-6 else 1e-12)


@pytest.mark.parametrize(("normalise", "extra"), [("sum", 10.0), ("mean", 2.5), ("batch", 2.0)])
def test_npo_with_a_retain_term(worked, normalise, extra):
    """The wanted side has 10 nats over 4 tokens; the batch's mean length is 5."""
    settings = npo.Settings(retain_weight=1.0, sft_normalise=normalise)
    batch = worked.pairs(mean_chosen_length=5.0)
    assert worked.value(npo, settings, batch) == pytest.approx(12.88793320147142 + extra, abs=1e-12)
    labelled = ones(worked, [-3.0, -3.0], [True, False])
    assert npo.loss(labelled, npo.Settings(retain_weight=2.0))[0][0].item() == pytest.approx(2 * 3 / 4, abs=1e-12)


def test_npo_with_a_divergence(worked):
    """One token each; ref (1/2, 1/2), pi (1/4, 3/4): KL(ref || pi) = ln(2 / sqrt 3) = 0.143841036225890."""
    logits = worked.doubles([0.25, 0.75], [0.5, 0.5]).log().requires_grad_()
    view = TokenInputs(
        targets=torch.zeros(2, dtype=torch.int64), group=torch.zeros(2, dtype=torch.int64), column=torch.tensor([0, 1]),
        position=torch.zeros(2, dtype=torch.int64),
        **view_of(logits, torch.zeros(2, dtype=torch.int64), torch.zeros_like(logits)),
    )
    settings = npo.Settings(retain_weight=2.0, retain="kl")
    batch = worked.pairs(lengths=torch.ones(1, 2, dtype=torch.int64), mean_chosen_length=1.0, tokens=view)
    plain = worked.value(npo, npo.Settings(), batch)
    assert worked.value(npo, settings, batch) - plain == pytest.approx(2 * 0.14384103622589045, abs=1e-12)
    assert npo.needs(settings) == Needs(labels=True, reference=True, divergences=True)
    assert npo.needs(npo.Settings(retain="kl")) == Needs(labels=True, reference=True)


# ---------------------------------------------------------------------------------------------------- all of the three


@pytest.mark.parametrize(("module", "settings"), [
    (bco, bco.Settings(shift="zero")), (kto, kto.Settings(reference_point="zero")), (npo, npo.Settings()),
])  # fmt: skip
def test_labels_pairs_and_lists_in_one_batch(worked, module, settings):
    """Completion 0 of a larger group is wanted whatever its label says, the others are not; no label means wanted."""
    ratios = worked.doubles([2.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [2.0, -1.0, 0.0], [2.0, -1.0, 3.0])
    present = torch.tensor([[True, False, False], [True, False, False], [True, True, False], [True, True, True]])
    batch = worked.pairs(ratios, torch.zeros_like(ratios), present=present,
                         labels=torch.tensor([True, False, False, True]))
    losses = module.loss(batch, settings)[0].tolist()
    one = {v: module.loss(ones(worked, [v], [v == 2.0]), settings)[0].item() for v in (2.0, -1.0, 3.0)}
    mean = {2: 2.0, 3: 3.0} if module is kto else {2: 1.0, 3: 1.0}
    both, three = one[2.0] + one[-1.0], one[2.0] + one[-1.0] + one[3.0]
    assert losses == pytest.approx([one[2.0], one[-1.0], both / mean[2], three / mean[3]], abs=1e-12)
    unlabelled = dataclasses.replace(batch, labels=None)
    assert module.loss(unlabelled, settings)[0][1].item() == pytest.approx(
        module.loss(ones(worked, [-1.0], [True]), settings)[0].item(), abs=1e-12)


def test_metrics_of_one_completion_compare_with_reward_0(worked):
    metrics = npo.loss(ones(worked, [2.0, -1.0, 1.0], [True, False, False]), npo.Settings())[1]
    assert metrics["rewards_chosen"].tolist() == pytest.approx([0.2, 0.0, 0.0])
    assert metrics["rewards_rejected"].tolist() == pytest.approx([0.0, -0.1, 0.1])
    assert metrics["margin"].tolist() == pytest.approx([0.2, 0.1, -0.1])
    assert metrics["accuracy"].tolist() == [1.0, 1.0, 0.0]
